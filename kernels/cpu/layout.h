// Where numbers lie: tensors with any strides, and rows of one channel packed into scratch.
//
// x [N, C, H, W] is read in one of three ways:
//   PLANES   neighbours in a row are neighbours in memory (NCHW, and views of it)
//   PIXELS   the channels of a pixel are (channels_last, and views of it), a quarter of a vector or more in a subspace
//   NEITHER  any other strides: rows are gathered one number at a time
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "vectors.h"

namespace ulsam {

enum class Order { PLANES, PIXELS, NEITHER };

struct Shape {
  int64_t N, C, H, W, g;
  int64_t G() const { return C / g; }  // channels of a subspace
  int64_t P() const { return H * W; }
};

struct Strides {
  int64_t n, c, h, w;

  bool rows_joined(const Shape& s) const { return w == 1 && (h == s.W || s.H == 1); }  // a channel is one run
};

// A tensor [N, C, H, W], or a part of it.
template <class T>
struct View {
  T* p;
  Strides s;

  View at(int64_t n, int64_t c) const { return {p + n * s.n + c * s.c, s}; }
  T* row(int64_t h) const { return p + h * s.h; }
};

template <class F>
Order order_of(const Strides& s, const Shape& shape) {
  if (s.w == 1 || shape.W == 1) return Order::PLANES;
  if (s.c == 1 && 4 * shape.G() >= LANES<F>) return Order::PIXELS;
  return Order::NEITHER;
}

// Scratch of one thread, for one map after the other: numbers of F, aligned to vectors; nothing is initialised.
template <class F>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : p_((F*)std::aligned_alloc(64, (count * sizeof(F) + 64 + 63) / 64 * 64)), end_(p_ + count) {
    if (!p_) throw std::bad_alloc();
    reset();
  }
  ~Scratch() { std::free(p_); }
  Scratch(const Scratch&) = delete;

  void reset() {
    next_ = p_;
#ifdef ULSAM_POISON  // to show that no result depends on what scratch held before
    std::fill(p_, end_, NOT_A_NUMBER<F>);
#endif
  }
  F* take(int64_t count) {
    F* p = next_;
    next_ += rounded(count);
    if (next_ > end_) std::abort();  // a size that was counted wrongly
    return p;
  }
  static int64_t rounded(int64_t count) { return (count + 15) / 16 * 16; }

 private:
  F *p_, *end_, *next_;
};

// dst[i] = src[i * step] for a row of W.
template <class F, class T>
ULSAM_INLINE void pack_row(F* dst, const T* src, int64_t step, int64_t W) {
  int64_t i = 0;
  if (step == 1) {
    if (W >= LANES<F>) {
      for (; i + LANES<F> <= W; i += LANES<F>) store(dst + i, load<F>(src + i));
      if (i < W) store(dst + W - LANES<F>, load<F>(src + W - LANES<F>));
      return;
    }
  }
  for (; i < W; ++i) dst[i] = get(src + i * step);
}

// Rows [r0, r1) of one channel, `to` numbers apart. `end`: memory up to there may be read.
template <class F, class T>
void pack_rows(F* dst, int64_t to, const T* src, const Strides& s, int64_t r0, int64_t r1, int64_t W,
               const T* end) {
  for (int64_t r = r0; r < r1; ++r, dst += to) {
    const T* row = src + r * s.h;
    if (s.w == 1 && W < LANES<F> && to >= LANES<F> && row + LANES<F> <= end)
      store(dst, load<F>(row));
    else
      pack_row(dst, row, s.w, W);
  }
}

// --- how work is cut, by shape alone --------------------------------------------------------------------------------

// Parts of `whole`, nearly equal, each a multiple of `unit` but for the last.
struct Cut {
  int64_t parts, size, whole;
  int64_t begin(int64_t i) const { return i * size; }
  int64_t end(int64_t i) const { return std::min(whole, (i + 1) * size); }
};

inline Cut cut(int64_t whole, int64_t largest, int64_t unit = 1) {
  const int64_t parts = std::max<int64_t>(1, (whole + largest - 1) / std::max<int64_t>(1, largest));
  const int64_t size = std::max<int64_t>(unit, ((whole + parts - 1) / parts + unit - 1) / unit * unit);
  return {std::max<int64_t>(1, (whole + size - 1) / size), size, whole};
}

}  // namespace ulsam
