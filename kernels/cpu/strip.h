// The buffers of winners.h: a strip of rows of one channel, or of a vector of channels, and how x gets there.
#pragma once

#include "layout.h"

namespace ulsam {

template <class F>
struct Strip {
  int64_t pitch, rows;  // pixels between rows; rows of a strip
  Cut cut_;
  F *kx, *raw, *h, *e;
  static constexpr int MOST = 8;

  static Cut cut_of(const Shape& s, int step) {
    const int64_t numbers = 12288 / int64_t(sizeof(F)) / step;
    return cut(s.H, std::max<int64_t>(4, numbers / (s.W + 2)));
  }
  // How many channels go through each step before the next: what a step has just stored is not yet where the next can
  // load it from, so a step should take a while. Strips of a large map do.
  static int at_once(const Shape& s, int step) {
    const Cut rows = cut_of(s, step);
    if (step > 1 || rows.parts > 1) return 1;
    return int(std::max<int64_t>(1, std::min<int64_t>(MOST, 512 / (rows.size * (s.W + 2)))));
  }
  static int64_t room(const Shape& s, int step) {
    const int64_t row = (s.W + 2) * step, rows = cut_of(s, step).size;
    const int64_t large = Scratch<F>::rounded((rows + 4) * row + 8 * step + 64);
    const int64_t small = Scratch<F>::rounded((rows + 1) * row + 8 * step + 64);
    return at_once(s, step) * (3 * large + small);
  }
  Strip(const Shape& s, int step, Scratch<F>& scratch) : pitch(s.W + 2), cut_(cut_of(s, step)) {
    rows = cut_.size;
    const int64_t large = (rows + 4) * pitch * step + 8 * step + 64, small = (rows + 1) * pitch * step + 8 * step + 64;
    kx = scratch.take(large) + 2 * step, raw = scratch.take(large) + 2 * step, h = scratch.take(large);
    e = scratch.take(small) + step;
  }
};

// kappa x of rows [first, last) that exist, NaN beside them; `to` is where row `first` goes.
template <class F, int STEP, class T>
void pack(F* to, View<const T> x, const Shape& s, int64_t first, int64_t last, Vec<F> kappa, const T* end) {
  const int64_t pitch = (s.W + 2) * STEP;
  if constexpr (STEP == 1) {
    pack_rows<F, T>(to, pitch, x.p, x.s, first, last, s.W, kappa[0], end);
  } else {
    for (int64_t r = first; r < last; ++r)
      for (int64_t w = 0; w < s.W; ++w)
        store(to + (r - first) * pitch + w * STEP, load<F>(x.row(r) + w * x.s.w) * kappa);
  }
  F* beyond = to - 2 * STEP;
  for (int64_t r = first; r <= last; ++r, beyond += pitch) {
    if constexpr (STEP == 1) beyond[0] = beyond[1] = NOT_A_NUMBER<F>;
    else store(beyond, broadcast(NOT_A_NUMBER<F>)), store(beyond + STEP, broadcast(NOT_A_NUMBER<F>));
  }
}

}  // namespace ulsam
