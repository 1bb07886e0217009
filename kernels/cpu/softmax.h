// The attention map of one image and subspace: A = softmax(act_z(gain z + offset)) over P pixels.
//
// The sum runs lane by lane and then over the lanes, so its order depends on P alone.
#pragma once

#include "exponential.h"

namespace ulsam {

template <class F>
struct Affine {
  F gain, offset;  // 1, 0 without a norm after the pointwise convolution
  bool relu;       // act_z
};

template <class F>
constexpr int64_t padded(int64_t count) {
  return (count + LANES<F> - 1) / LANES<F> * LANES<F>;
}

// z [P] -> a [padded(P)], 0 behind P; returns log-sum-exp. a may not be z.
template <class F>
ULSAM_APART F softmax(F* a, const F* z, int64_t P, Affine<F> affine) {
  const int64_t whole = P / LANES<F> * LANES<F>, end = padded<F>(P);
  const Vec<F> gain = broadcast(affine.gain), offset = broadcast(affine.offset);
  Vec<F> m = broadcast(-INF<F>);
  const int rest = int(P - whole);
  for (int64_t i = 0; i < end; i += LANES<F>) {
    Vec<F> l = i < whole ? load(z + i) : first_lanes<F>(load_some<F>(z + i, rest), rest, broadcast(z[P - 1]));
    l = l * gain + offset;
    if (affine.relu) l = relu<F>(l);
    store(a + i, l);
    m = maximum(l, m);
  }
  const F top = max_lanes<F>(m);
  const Vec<F> top_v = broadcast(top);
  Vec<F> sum{};
  for (int64_t i = 0; i < whole; i += LANES<F>) {
    const Vec<F> e = exponential(load(a + i) - top_v);
    store(a + i, e);
    sum += e;
  }
  if (whole < end) {
    const Vec<F> e = first_lanes<F>(exponential(load(a + whole) - top_v), rest, Vec<F>{});
    store(a + whole, e);
    sum += e;
  }
  const F total = sum_lanes<F>(sum);
  const Vec<F> factor = broadcast(F(1) / total);
  for (int64_t i = 0; i < end; i += LANES<F>) store(a + i, load(a + i) * factor);
  return top + std::log(total);
}

// 0 in place of what changes nothing beside 1, nor its products: arithmetic with numbers below the smallest normal one
// takes many times as long (a backward with peaked maps twice as long in all).
template <class F>
void drop_tiny(F* a, int64_t P) {
  const Vec<F> least = broadcast(std::is_same<F, float>::value ? F(0x1p-100) : F(0x1p-900));
  for (int64_t i = 0; i < P; i += LANES<F>) store(a + i, unless<F>((Mask<F>)(load(a + i) < least), load(a + i)));
}

}  // namespace ulsam
