// One image and subspace, whole or a strip of its rows: logits in whatever order x lies in memory.
#pragma once

#include "exact.h"
#include "reweight.h"
#include "softmax.h"
#include "window_small.h"
#include "window_pixels.h"

namespace ulsam {

// Maps fewer than this, each of at least LARGE numbers, are cut into strips that threads share.
constexpr int64_t FEW = 16, LARGE = 32768;

inline bool cut_into_strips(const Shape& s) { return s.N * s.g < FEW && s.G() * s.P() >= LARGE; }

template <class F>
int64_t logits_scratch(const Shape& s) {
  return std::max(planes_scratch<F>(s), pixels_scratch<F>(s));
}

// Of a whole tensor.
template <class T>
Bounds<T> bounds_of(View<const T> x, const Shape& s) {
  return {x.p, x.p + (s.N - 1) * x.s.n + (s.C - 1) * x.s.c + (s.H - 1) * x.s.h + (s.W - 1) * x.s.w + 1};
}

// z [P] in rows [r0, r1) of subspace k, from x at its first channel; takes logits_scratch numbers.
template <class F, class T>
void logits(F* z, View<const T> x, Bounds<T> bounds, const Shape& s, int64_t k, const Channels<F>& channels,
            int64_t r0, int64_t r1, Scratch<F>& scratch) {
#ifdef ULSAM_AVX512
  if constexpr (WIDE<F>)
    if (is_small(x.s, s)) return logits_of_small_maps<T>(z, x, bounds, s, k, channels);
#endif
  if (order_of<F>(x.s, s) == Order::PIXELS && s.G() >= LANES<F>)
    logits_of_pixels<F, T>(z, x, s, k, channels, r0, r1, scratch);
  else
    logits_of_planes<F, T>(z, x, bounds, s, k, channels, r0, r1, scratch);
}

}  // namespace ulsam
