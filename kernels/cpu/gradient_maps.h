// The gradient of the logits of one image and subspace: dA = sum over c of D x (+ what arrives at A itself),
// dl = A (dA - sum over q of A dA), 0 where act_z is a ReLU and its logit is not positive.
#pragma once

#include "maps.h"

namespace ulsam {

// Whether D is read as x is, a vector at a time.
template <class F>
bool alike(const Strides& D, const Strides& x, const Shape& s) {
  return order_of<F>(x, s) != Order::NEITHER && order_of<F>(D, s) == order_of<F>(x, s) &&
         (order_of<F>(x, s) == Order::PIXELS || (D.w == 1 && x.w == 1));
}

// da [P] += sum over channels of D x in rows [r0, r1).
template <class F, class T, class DT>
ULSAM_APART void add_products(F* da, View<const DT> D, View<const T> x, const Shape& s, int64_t r0, int64_t r1) {
  constexpr int L = LANES<F>;
  using V = Vec<F>;
  const int64_t G = s.G();
  if (!alike<F>(D.s, x.s, s)) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t w = 0; w < s.W; ++w) {
        const DT* d = D.row(r) + w * D.s.w;
        const T* v = x.row(r) + w * x.s.w;
        F sum = 0;
        for (int64_t c = 0; c < G; ++c) sum += F(get(d + c * D.s.c)) * F(get(v + c * x.s.c));
        da[r * s.W + w] += sum;
      }
  } else if (order_of<F>(x.s, s) == Order::PIXELS) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t w = 0; w < s.W; ++w) {
        const DT* d = D.row(r) + w * D.s.w;
        const T* v = x.row(r) + w * x.s.w;
        V sum{}, sum2{};
        int64_t c = 0;
        for (; c + 2 * L <= G; c += 2 * L)
          sum += load<F>(d + c) * load<F>(v + c), sum2 += load<F>(d + c + L) * load<F>(v + c + L);
        for (; c + L <= G; c += L) sum += load<F>(d + c) * load<F>(v + c);
        if (c < G) sum += load_some<F>(d + c, int(G - c)) * load_some<F>(v + c, int(G - c));
        da[r * s.W + w] += sum_lanes<F>(sum + sum2);
      }
  } else {
    const bool joined = D.s.rows_joined(s) && x.s.rows_joined(s);
    const int64_t runs = joined ? 1 : r1 - r0, length = joined ? (r1 - r0) * s.W : s.W;
    for (int64_t c = 0; c < G;) {
      const int64_t n = G - c >= 4 ? 4 : 1;
      for (int64_t j = 0; j < runs; ++j) {
        const DT* d = D.at(0, c).row(r0 + j);
        const T* v = x.at(0, c).row(r0 + j);
        F* const to = da + (r0 + j) * s.W;
        int64_t i = 0;
        if (n == 4) {
          const DT *d1 = d + D.s.c, *d2 = d1 + D.s.c, *d3 = d2 + D.s.c;
          const T *v1 = v + x.s.c, *v2 = v1 + x.s.c, *v3 = v2 + x.s.c;
          for (; i + L <= length; i += L) {
            V sum = load<F>(d + i) * load<F>(v + i) + load<F>(d1 + i) * load<F>(v1 + i);
            sum += load<F>(d2 + i) * load<F>(v2 + i) + load<F>(d3 + i) * load<F>(v3 + i);
            store(to + i, load(to + i) + sum);
          }
          for (; i < length; ++i)
            to[i] += F(get(d + i)) * F(get(v + i)) + F(get(d1 + i)) * F(get(v1 + i)) +
                     (F(get(d2 + i)) * F(get(v2 + i)) + F(get(d3 + i)) * F(get(v3 + i)));
        } else {
          for (; i + L <= length; i += L) store(to + i, load(to + i) + load<F>(d + i) * load<F>(v + i));
          for (; i < length; ++i) to[i] += F(get(d + i)) * F(get(v + i));
        }
      }
      c += n;
    }
  }
}

// dl [P] of a map in place of da, from a = A [padded(P)], 0 behind P, and z [P]; returns the sum of dl.
template <class F>
F logit_gradient(F* da, const F* a, const F* z, int64_t P, Affine<F> affine) {
  constexpr int L = LANES<F>;
  using V = Vec<F>;
  const int64_t end = padded<F>(P);
  std::fill(da + P, da + end, F(0));
  V sum{};
  for (int64_t i = 0; i < end; i += L) sum += load(a + i) * load(da + i);
  const V S = broadcast(sum_lanes<F>(sum));
  V total{};
  for (int64_t i = 0; i < end; i += L) {
    const int lanes = int(std::min<int64_t>(L, P - i));
    V dl = load(a + i) * (load(da + i) - S);
    if (affine.relu) {
      const V l = broadcast(affine.gain) * load_some<F>(z + i, lanes) + broadcast(affine.offset);
      dl = unless<F>((Mask<F>)(l <= V{}), dl);
    }
    if (lanes < L) dl = first_lanes<F>(dl, lanes, V{});
    store(da + i, dl);
    total += dl;
  }
  return sum_lanes<F>(total);
}

}  // namespace ulsam
