// One image and subspace, whole or a strip of its rows: logits in whatever order x lies in memory.
#pragma once

#include "exact.h"
#include "reweight.h"
#include "softmax.h"
#include "window_small.h"
#include "window_pixels.h"

namespace ulsam {

// Maps fewer than FEW, each of at least LARGE numbers, are cut into strips that threads share. So are maps of which
// several share each line of the cache: a strip is then done for one after the other, while its lines are there.
// 4x32x112x112 in 4 subspaces, channels_last: forward 2.9 to 1.2 ms, forward + backward 8.7 to 5.3.
constexpr int64_t FEW = 16, LARGE = 32768, LINE = 64;

template <class F, class T>
bool share_lines(const Strides& x, const Shape& s) {
  return order_of<F>(x, s) == Order::PIXELS && s.G() * int64_t(sizeof(T)) < LINE && s.C * s.P() >= LARGE;
}

template <class F, class T>
bool cut_into_strips(const Strides& x, const Shape& s) {
  return (s.N * s.g < FEW && s.G() * s.P() >= LARGE) || share_lines<F, T>(x, s);
}

// Rows that are passed without a look at the rows beside them: where maps share lines, few enough for L1.
template <class F, class T>
Cut passed_rows(const Strides& x, const Shape& s) {
  const int64_t row = s.W * s.C * int64_t(sizeof(T));
  return share_lines<F, T>(x, s) ? cut(s.H, std::max<int64_t>(1, 16384 / row)) : strips<F>(s);
}

// Room for the A of one map, with a vector behind it.
template <class F>
int64_t map_room(const Shape& s) {
  return Scratch<F>::rounded(padded<F>(s.P()) + LANES<F>);
}

// f(first, count) for parts of the images: as many as have their maps in scratch at once where these are cut into
// strips, few megabytes.
template <class Function>
void each_images(const Shape& s, const Function& f) {
  const Cut images = cut(s.N, std::max<int64_t>(1, (1 << 20) / (s.g * s.P())));
  for (int64_t j = 0; j < images.parts; ++j) f(images.begin(j), images.end(j) - images.begin(j));
}

// A strip of one map: those of an image's subspaces at the same rows follow each other.
struct Piece {
  int64_t map, strip;
};
inline Piece piece_of(int64_t item, const Shape& s, int64_t strips) {
  return {item / (strips * s.g) * s.g + item % s.g, item / s.g % strips};
}

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
