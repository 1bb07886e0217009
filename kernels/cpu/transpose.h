// A square of vectors turned over: lane i of vector j goes to lane j of vector i.
#pragma once

#include "vectors.h"

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

}  // namespace ulsam
