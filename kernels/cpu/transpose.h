// A square of vectors turned over: lane i of vector j goes to lane j of vector i.
#pragma once

#include "layout.h"

namespace ulsam {

// Of the blocks of B lanes of a and b: those at even places (or odd ones), a's and b's by turns.
template <class F, int B, bool ODD, std::size_t... I>
ULSAM_INLINE Vec<F> blocks_of(Vec<F> a, Vec<F> b, std::index_sequence<I...>) {
  constexpr auto from = [](int i) { return (i & B ? LANES<F> + i - B : i) + (ODD ? B : 0); };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from(I)...);
#else
  return __builtin_shuffle(a, b, Mask<F>{from(I)...});
#endif
}

template <class F, int B = LANES<F> / 2>
ULSAM_INLINE void transpose(Vec<F>* v) {
  constexpr std::make_index_sequence<LANES<F>> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < LANES<F>; ++i)
    if (!(i & B)) {
      const Vec<F> a = v[i], b = v[i + B];
      v[i] = blocks_of<F, B, false>(a, b, lanes), v[i + B] = blocks_of<F, B, true>(a, b, lanes);
    }
  if constexpr (B > 1) transpose<F, B / 2>(v);
}

// Rows of pixels, each with G < LANES<F> channels beside each other, become a plane to[c] of every channel, with
// `width` numbers to a row; W >= LANES<F>.
template <class F, class T>
ULSAM_APART void planes_of_pixels(F* const* to, int64_t width, const T* x, const Strides& s, int64_t G, int64_t rows,
                                  int64_t W) {
  constexpr int L = LANES<F>;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t w = 0; w < W; w += L) {
      const int64_t at = std::min(w, W - L);
      const T* const p = x + r * s.h + at * s.w;
      Vec<F> square[L];
      unrolled<L>([&](auto i) { square[i] = load_some<F>(p + i * s.w, int(G)); });
      transpose<F>(square);
      unrolled<L>([&](auto i) {
        if (i < G) store(to[i] + r * width + at, square[i]);
      });
    }
}

}  // namespace ulsam
