// Logits of rows of a map in PIXELS order: the same sum as in window.h, with the channels of a pixel in the lanes.
//
// A vector of channels walks along two rows of output at once: of four rows of x it keeps the vertical maxima of the
// last two pixels, so an output costs two loads. Each lane adds its products to a sum per pixel, which stays in L1;
// the lanes are added up when all vectors of channels are through. The last vector ends with the subspace's last
// channel; its lanes that the vector before it has had already count as 0.
#pragma once

#include "parameters.h"

namespace ulsam {

// Two rows of sums, `sums` and `sums + W vectors`, of one vector of channels; rows: r - 1, r, r + 1, r + 2 of x.
template <class F, class T, bool RELU, bool LAST>
ULSAM_APART void walk(F* sums, const T* const* rows, int64_t step, int64_t W, Mask<F> sign, Vec<F> size,
                      Vec<F> shift, Vec<F> v, Mask<F> counted) {
  using V = Vec<F>;
  F *s0 = sums, *s1 = sums + W * LANES<F>;
  const T *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
  auto kx = [&](const T* p) { return (V)((Mask<F>)load<F>(p) ^ sign); };
  auto add = [&](F* sum, V m) {
    V term;
    if constexpr (RELU) term = v * relu<F>(m * size + shift);
    else term = size * m;
    if constexpr (LAST) term = (V)((Mask<F>)term & counted);
    store(sum, load(sum) + term);
  };
  V p = maximum(kx(b), kx(c));
  V t0 = maximum(kx(a), p), t1 = maximum(p, kx(d)), q0 = t0, q1 = t1;  // q: maximum of this pixel and the one before
  for (int64_t w = 1; w < W; ++w) {
    a += step, b += step, c += step, d += step;
    p = maximum(kx(b), kx(c));
    const V n0 = maximum(kx(a), p), n1 = maximum(p, kx(d));
    add(s0, maximum(q0, n0)), add(s1, maximum(q1, n1));
    s0 += LANES<F>, s1 += LANES<F>;
    q0 = maximum(t0, n0), q1 = maximum(t1, n1);
    t0 = n0, t1 = n1;
  }
  add(s0, q0), add(s1, q1);
}

template <class F>
int64_t pixels_scratch(const Shape& s) {
  return 2 * s.W * LANES<F> + 16;
}

// z [P] of image and subspace k in rows [r0, r1), from x at its first channel.
template <class F, class T>
ULSAM_APART void logits_of_pixels(F* z, View<const T> x, const Shape& s, int64_t k, const Channels<F>& channels,
                                   int64_t r0, int64_t r1, F* sums) {
  constexpr int L = LANES<F>;
  const int64_t G = s.G(), c0 = k * G;
  for (int64_t r = r0; r < r1; r += 2) {
    std::fill(sums, sums + 2 * s.W * L, F(0));
    const int64_t at[4] = {std::max<int64_t>(r - 1, 0), r, std::min(r + 1, s.H - 1), std::min(r + 2, s.H - 1)};
    for (int64_t i = 0; i < G; i += L) {
      const int64_t c = std::min(i, G - L);
      const T* rows[4];
      for (int j = 0; j < 4; ++j) rows[j] = x.row(at[j]) + c;
      Mask<F> counted = (Mask<F>)(Vec<F>{} == Vec<F>{});
      for (int64_t j = 0; j < i - c; ++j) counted[j] = 0;
      const Mask<F> sign = (Mask<F>)load(&channels.scale[c0 + c]) & (Mask<F>)broadcast(F(-0.0));
      const Vec<F> shift = load(&channels.shift[c0 + c]), v = load(&channels.v[c0 + c]);
      const Vec<F> size = load(channels.relu ? &channels.size[c0 + c] : &channels.weight[c0 + c]);
      auto go = [&](auto relu, auto last) {
        walk<F, T, relu, last>(sums, rows, x.s.w, s.W, sign, size, shift, v, counted);
      };
      if (c < i) channels.relu ? go(std::true_type(), std::true_type()) : go(std::false_type(), std::true_type());
      else channels.relu ? go(std::true_type(), std::false_type()) : go(std::false_type(), std::false_type());
    }
    const int64_t pixels = std::min<int64_t>(r1 - r, 2) * s.W;
    for (int64_t p = 0; p < pixels; ++p) z[r * s.W + p] = sum_lanes<F>(load(sums + p * L)) + channels.bias[k];
  }
}

}  // namespace ulsam
