// Logits of maps of 33 to 64 pixels, such as 7x7, in PLANES order with rows joined, where AVX-512 has 16 lanes: rows of
// 7 would leave 9 of them idle.
//
// A channel is four vectors of pixels in registers, and so is z. A neighbour in the row, and then one in the column,
// comes by a permutation of two vectors that follow each other; beyond an edge it picks the pixel itself, which is in
// the window anyway. 256x7x7: 0.23 ns a number, by rows 0.47.
#pragma once

#include "window.h"

namespace ulsam {

#ifdef ULSAM_AVX512

constexpr int SMALL = 4;  // vectors

inline bool is_small(const Strides& x, const Shape& s) {
  constexpr int L = LANES<float>;
  const bool apart = x.c >= s.P() && (x.n >= s.P() || x.n == 0);  // no channel overlaps the tensor's last
  return x.rows_joined(s) && apart && s.P() > SMALL / 2 * L && s.P() <= SMALL * L && s.W <= L;
}

// Where the neighbours of a vector of pixels are on two sides: lanes of the vector before it and itself, and of itself
// and the next.
struct Neighbours {
  Mask<float> before, after;
};

struct SmallMap {
  int64_t H = 0, W = 0;
  Neighbours beside[SMALL], above[SMALL];

  // Of the last size that this thread asked for.
  static const SmallMap& of(const Shape& s) {
    thread_local SmallMap map;
    if (map.H != s.H || map.W != s.W) map.fill(s.H, s.W);
    return map;
  }

 private:
  void fill(int64_t H_, int64_t W_) {
    constexpr int L = LANES<float>;
    H = H_, W = W_;
    for (int64_t p = 0; p < SMALL * L; ++p) {
      const int j = int(p / L), i = int(p % L);
      auto set = [&](Neighbours& n, int64_t step, bool first, bool last) {
        n.before[i] = int32_t(first ? L + i : L + i - step), n.after[i] = int32_t(last ? i : i + step);
      };
      set(beside[j], 1, p % W == 0, p % W == W - 1);
      set(above[j], W, p < W, p >= (H - 1) * W);
    }
  }
};

ULSAM_INLINE Vec<float> pick(Vec<float> a, Mask<float> lanes, Vec<float> b) {
  return (Vec<float>)_mm512_permutex2var_ps((__m512)a, (__m512i)lanes, (__m512)b);
}

// x[j] = the extreme of each pixel and its two neighbours.
template <bool NEGATIVE>
ULSAM_INLINE void extremes(Vec<float>* x, const Neighbours* neighbours) {
  Vec<float> m[SMALL];
  unrolled<SMALL>([&](auto j) {
    const Vec<float> before = pick(x[j > 0 ? j - 1 : j], neighbours[j].before, x[j]);
    const Vec<float> after = pick(x[j], neighbours[j].after, x[j + 1 < SMALL ? j + 1 : j]);
    m[j] = extreme<NEGATIVE>(extreme<NEGATIVE>(before, after), x[j]);
  });
  unrolled<SMALL>([&](auto j) { x[j] = m[j]; });
}

// Adds channels [begin, end) of `channels.order` to z; x: at channel c0. Of the tensor's very last channel, behind which
// memory may end, a copy is read.
template <bool NEGATIVE, bool RELU, class T>
ULSAM_APART void add_small(Vec<float>* z, View<const T> x, Bounds<T> bounds, const Shape& s, int64_t c0,
                           int64_t begin, int64_t end, const Channels<float>& channels) {
  using V = Vec<float>;
  const SmallMap& map = SmallMap::of(s);
  T copy[SMALL * LANES<float>] = {};
  const T* const last = bounds.end - s.P();
  if (last == x.p + (s.G() - 1) * x.s.c) std::copy(last, bounds.end, copy);
  for (int64_t i = begin; i < end;) {
    V part[SMALL] = {};
    for (const int64_t stop = std::min(end, i + BLOCK); i < stop; ++i) {
      const T* const there = x.p + (channels.order[i] - c0) * x.s.c;
      const T* const p = there == last ? copy : there;
      V m[SMALL];
      unrolled<SMALL>([&](auto j) { m[j] = load<float>(p + j * LANES<float>); });
      extremes<NEGATIVE>(m, map.beside);
      extremes<NEGATIVE>(m, map.above);
      const Term<float> term = channels.terms[i];
      const V size = broadcast(NEGATIVE ? -term.size : term.size);
      unrolled<SMALL>([&](auto j) {
        if constexpr (RELU) part[j] += broadcast(term.v) * relu<float>(m[j] * size + broadcast(term.shift));
        else part[j] += m[j] * size;
      });
    }
    unrolled<SMALL>([&](auto j) { z[j] += part[j]; });
  }
}

// z [P] of subspace k, from x at its first channel.
template <class T>
ULSAM_APART void logits_of_small_maps(float* z, View<const T> x, Bounds<T> bounds, const Shape& s, int64_t k,
                                      const Channels<float>& channels) {
  Vec<float> sums[SMALL];
  for (Vec<float>& sum : sums) sum = broadcast(channels.bias[k]);
  const int64_t c0 = k * s.G(), middle = channels.negative_at[k];
  auto add = [&](auto relu) {
    add_small<false, relu, T>(sums, x, bounds, s, c0, c0, middle, channels);
    add_small<true, relu, T>(sums, x, bounds, s, c0, middle, c0 + s.G(), channels);
  };
  channels.relu ? add(std::true_type()) : add(std::false_type());
  std::memcpy(z, sums, s.P() * sizeof(float));
}

#endif

}  // namespace ulsam
