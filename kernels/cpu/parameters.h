// Parameters of channels: [C] or [g], of any type, read once per call into the type of computation.
#pragma once

#include <memory>
#include <vector>

#include "layout.h"

namespace ulsam {

// What the march over a channel's rows multiplies with: weight, or size, shift and v of v act_u(size m + shift). For
// kappa < 0 m is minus a minimum.
template <class F>
struct Term {
  F size, shift, v;
};

// A channel's part in u = act_u(scale x + shift), z = sum v max u: with kappa = sign(scale) and m the maximum of kappa
// x over the window, act_u(size m + shift) is the maximum of u, for rounding is monotone.
template <class F>
struct Channels {
  std::vector<F> scale, shift, v;    // [C]
  std::vector<F> kappa, size;        // [C]: sign(scale), |scale|
  std::vector<F> weight;             // [C]: v |scale|, without act_u
  std::vector<F> bias;               // [g]: b, and without act_u sum v shift too
  bool relu;                         // act_u
  std::vector<int32_t> order;        // [C]: within each subspace those of kappa >= 0 first
  std::unique_ptr<Term<F>[]> terms;  // [C]: in that order
  std::vector<int32_t> negative_at;  // [g]: where in it those of kappa < 0 begin

  Channels(const Shape& s, std::vector<F> scale_, std::vector<F> shift_, std::vector<F> v_, std::vector<F> b,
           bool relu_)
      : scale(std::move(scale_)), shift(std::move(shift_)), v(std::move(v_)), bias(std::move(b)), relu(relu_) {
    const int64_t G = s.G();
    const bool shifted = !shift.empty();
    if (!shifted) shift.assign(s.C, 0);
    if (bias.empty()) bias.assign(s.g, 0);
    kappa.resize(s.C), size.resize(s.C), weight.resize(s.C);
    order.resize(s.C), terms.reset(new Term<F>[s.C]), negative_at.resize(s.g);
    for (int64_t k = 0; k < s.g; ++k) {
      const int64_t begin = k * G, end = begin + G;
      int32_t negative = 0;
      for (int64_t c = begin; c < end; ++c) {
        const F a = scale[c];
        negative += a < 0;
        kappa[c] = a != a ? a : F((a > 0) - (a < 0));
        size[c] = std::abs(a);
        weight[c] = v[c] * size[c];
      }
      negative_at[k] = int32_t(end) - negative;
      int32_t next[2] = {int32_t(begin), negative_at[k]};  // by sign, without a branch that is foreseen half of the time
      for (int64_t c = begin; c < end; ++c) {
        const int32_t at = next[scale[c] < 0]++;
        order[at] = int32_t(c);
        terms[at] = {relu ? size[c] : weight[c], shift[c], v[c]};
      }
      if (!relu && shifted) {
        F constant = 0;
        for (int64_t c = begin; c < end; ++c) constant += v[c] * shift[c];
        bias[k] += constant;
      }
    }
  }
};

}  // namespace ulsam
