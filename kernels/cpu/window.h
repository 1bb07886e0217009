// Logits of rows of a map in PLANES order: z[p] = b + sum over c of v act_u(size max over W(p) of kappa x + shift).
//
// A tile is NV vectors of columns; it marches down the rows and keeps the horizontal maxima of the last two. A row
// costs three loads a vector, the columns themselves and those beside them; beyond an edge stands the edge column
// itself, which is in the same window. The last vector of a row ends with the row, so it may overlap the one before it:
// z is kept with NV whole vectors to a row. A map narrower than a vector is one vector with lanes to spare.
//
// Channels go outside the rows: a strip of z stays in L1 and each channel adds to it. Of maps one vector wide CH = 4
// channels go at once, so that z is loaded and stored less often (256x7x7: 0.46 ns a number, one by one 0.58; of maps
// two vectors wide, two at once take 0.30 and one by one 0.28). Those of kappa < 0 take minima and a negative weight.
// After BLOCK channels the sums move to a second buffer, since a longer chain would lose more than a sum in pairs.
#pragma once

#include "parameters.h"

namespace ulsam {

constexpr int BLOCK = 16;

// Tiles of more than two vectors and several channels at once are compiled for float only.
template <class F>
constexpr bool WIDE = std::is_same<F, float>::value;

// Columns of the vectors that cover a row, and the lanes beside each lane at the edges.
template <class F>
struct Columns {
  int64_t W, vectors, width;  // width: of a row of z, in numbers
  Mask<F> left, right;

  explicit Columns(int64_t W_) : W(W_), vectors((W_ + LANES<F> - 1) / LANES<F>), width(vectors * LANES<F>) {
    for (int i = 0; i < LANES<F>; ++i) {
      left[i] = std::max(i - 1, 0);
      right[i] = std::min<int64_t>(i + 1, std::min<int64_t>(W, LANES<F>) - 1);
    }
  }
  int64_t column(int64_t j) const { return std::max<int64_t>(0, std::min<int64_t>(j * LANES<F>, W - LANES<F>)); }
};

// What one channel contributes: weight m, or v act_u(size m + shift); for kappa < 0 m is minus a minimum.
template <class F>
struct Term {
  F size, shift, v;
};

template <bool NEGATIVE, class V>
ULSAM_INLINE V extreme(V a, V b) {
  return NEGATIVE ? minimum(a, b) : maximum(a, b);
}

template <class F, bool NEGATIVE, bool LEFT, bool RIGHT>
ULSAM_INLINE Vec<F> horizontal(const F* p, const Mask<F>& left, const Mask<F>& right) {
  const Vec<F> c = load(p);
  const Vec<F> l = LEFT ? permuted<F>(c, left) : load(p - 1);
  const Vec<F> r = RIGHT ? permuted<F>(c, right) : load(p + 1);
  return extreme<NEGATIVE>(extreme<NEGATIVE>(l, r), c);
}

// Adds CH channels to rows [r0, r1) of z; x: row 0 of each channel at this tile's first column, `row` between rows.
template <class F, int NV, int CH, bool NEGATIVE, bool RELU, bool LEFT, bool RIGHT>
ULSAM_APART void march(F* z, int64_t width, const F* const* x, int64_t row, int64_t H, int64_t r0, int64_t r1,
           const Term<F>* terms, const Columns<F>& columns, int64_t first) {
  using V = Vec<F>;
  const Mask<F> left = columns.left, right = columns.right;
  int64_t o[NV];
  for (int j = 0; j < NV; ++j) o[j] = columns.column(first + j) - columns.column(first);
  V size[CH], shift[CH], v[CH];
  for (int i = 0; i < CH; ++i) {
    size[i] = broadcast(NEGATIVE ? -terms[i].size : terms[i].size);
    shift[i] = broadcast(terms[i].shift), v[i] = broadcast(terms[i].v);
  }
  auto across = [&](const F* p, auto j) {
    constexpr bool L = LEFT && j == 0, R = RIGHT && j == NV - 1;
    return horizontal<F, NEGATIVE, L, R>(p + o[j], left, right);
  };
  auto each = [](auto f) {
    f(std::integral_constant<int, 0>());
    if constexpr (NV > 1) f(std::integral_constant<int, 1>());
    if constexpr (NV > 2) f(std::integral_constant<int, 2>());
    if constexpr (NV > 3) f(std::integral_constant<int, 3>());
  };
  auto add = [&](V z, V m, int i) {
    if constexpr (RELU) return z + v[i] * relu<F>(m * size[i] + shift[i]);
    return z + size[i] * m;
  };
  V h0[CH][NV], h1[CH][NV];
  const int64_t above = std::max<int64_t>(r0 - 1, 0) * row;
  each([&](auto j) {
    for (int i = 0; i < CH; ++i) h0[i][j] = across(x[i] + above, j), h1[i][j] = across(x[i] + r0 * row, j);
  });
  int64_t r = r0;
  for (; r + 2 <= r1; r += 2, z += 2 * width) {
    const int64_t i2 = (r + 1) * row, i3 = std::min(r + 2, H - 1) * row;
    each([&](auto j) {
      V z0 = load(z + j * LANES<F>), z1 = load(z + width + j * LANES<F>);
      for (int i = 0; i < CH; ++i) {
        const V h2 = across(x[i] + i2, j), h3 = across(x[i] + i3, j), p = extreme<NEGATIVE>(h1[i][j], h2);
        z0 = add(z0, extreme<NEGATIVE>(h0[i][j], p), i);
        z1 = add(z1, extreme<NEGATIVE>(p, h3), i);
        h0[i][j] = h2, h1[i][j] = h3;
      }
      store(z + j * LANES<F>, z0), store(z + width + j * LANES<F>, z1);
    });
  }
  if (r < r1) {
    const int64_t i2 = std::min(r + 1, H - 1) * row;
    each([&](auto j) {
      V z0 = load(z + j * LANES<F>);
      for (int i = 0; i < CH; ++i)
        z0 = add(z0, extreme<NEGATIVE>(extreme<NEGATIVE>(h0[i][j], h1[i][j]), across(x[i] + i2, j)), i);
      store(z + j * LANES<F>, z0);
    });
  }
}

template <class F, int NV, int CH, bool NEGATIVE, bool RELU>
void march_tile(F* z, const F* const* x, int64_t row, int64_t H, int64_t r0, int64_t r1, const Term<F>* terms,
                const Columns<F>& columns, int64_t first) {
  const F* at[CH];
  for (int i = 0; i < CH; ++i) at[i] = x[i] + columns.column(first);
  F* const to = z + first * LANES<F>;
  const bool left = first == 0, right = first + NV == columns.vectors;
  auto go = [&](auto l, auto r) {
    march<F, NV, CH, NEGATIVE, RELU, l, r>(to, columns.width, at, row, H, r0, r1, terms, columns, first);
  };
  const std::true_type yes;
  const std::false_type no;
  // only what `march_rows` asks for is compiled: a single channel in several tiles, the narrow tile being the last
  if (left && right) return go(yes, yes);
  if constexpr (CH == 1 && (NV > 1 || !WIDE<F>)) {
    if (right) return go(no, yes);
    if constexpr (NV > 1 + WIDE<F>) left ? go(yes, no) : go(no, no);
  }
}

// How many channels of one sign go at once.
template <class F>
int channels_at_once(int64_t vectors) {
  return WIDE<F> && vectors == 1 ? 4 : 1;
}

// Adds `count` channels, channels_at_once or one, to a strip of z, rows [r0, r1) of `columns.width` numbers.
template <class F, bool NEGATIVE, bool RELU>
void march_rows(F* z, const F* const* x, int count, int64_t row, int64_t H, int64_t r0, int64_t r1,
                const Term<F>* terms, const Columns<F>& columns) {
  for (int64_t j = 0; j < columns.vectors;) {
    const int64_t left = columns.vectors - j;
    auto go = [&](auto nv, auto ch) {
      march_tile<F, nv, ch, NEGATIVE, RELU>(z, x, row, H, r0, r1, terms, columns, j);
      j += nv;
    };
    using std::integral_constant;
    const integral_constant<int, 1> one;
    const integral_constant<int, 2> two;
    const integral_constant<int, 3> three;
    const integral_constant<int, 4> four;
    if constexpr (WIDE<F>) {
      if (count == 4) go(one, four);
      else if (left == 1) go(one, one);
      else if (left == 2) go(two, one);
      else if (left == 3 || left == 5 || left == 6) go(three, one);
      else go(four, one);
    } else {
      left == 1 ? go(one, one) : go(two, one);
    }
  }
}

// Rows of a strip of which z stays in L1.
template <class F>
Cut strips(const Shape& s) {
  const int64_t width = Columns<F>(s.W).width;
  return cut(s.H, std::max<int64_t>(2, 8192 / int64_t(sizeof(F)) / width), 2);
}

template <class F>
int64_t planes_scratch(const Shape& s) {
  const int64_t rows = strips<F>(s).size, width = Columns<F>(s.W).width;
  return 2 * Scratch<F>::rounded(rows * width) + 4 * Scratch<F>::rounded((rows + 2) * width);
}

// z [P] of image and subspace in rows [r0, r1) = one strip, from x at its first channel, which may be read up to `end`.
template <class F, class T>
ULSAM_APART void logits_of_planes(F* z, View<const T> x, const T* end, const Shape& s, int64_t k,
                                   const Channels<F>& channels, int64_t r0, int64_t r1, Scratch<F>& scratch) {
  const Columns<F> columns(s.W);
  const int64_t count = (r1 - r0) * columns.width, c0 = k * s.G(), at_once = channels_at_once<F>(columns.vectors);
  F* const total = scratch.take(count);
  F* const part = scratch.take(count);
  const int64_t first = std::max<int64_t>(r0 - 1, 0), last = std::min(r1 + 1, s.H);
  F* packed[4];
  for (F*& p : packed) p = scratch.take((last - first) * columns.width);
  std::fill(total, total + count, channels.bias[k]);
  std::fill(part, part + count, F(0));
  int in_part = 0;
  for (int negative = 0; negative < 2; ++negative) {
    const int64_t begin = negative ? channels.negative_at[k] : c0;
    const int64_t stop = negative ? c0 + s.G() : channels.negative_at[k];
    for (int64_t i = begin; i < stop;) {
      const int n = stop - i >= at_once ? int(at_once) : 1;
      const F* rows[4];
      Term<F> terms[4];
      bool direct = std::is_same<T, F>::value && x.s.w == 1;
      for (int j = 0; j < n; ++j) {
        const int32_t c = channels.order[i + j];
        const T* p = x.p + (c - c0) * x.s.c;
        direct = direct && p + (last - 1) * x.s.h + std::max<int64_t>(s.W, LANES<F>) <= end;
        terms[j] = {channels.relu ? channels.size[c] : channels.weight[c], channels.shift[c], channels.v[c]};
      }
      for (int j = 0; j < n; ++j) {
        const T* p = x.p + (channels.order[i + j] - c0) * x.s.c;
        if constexpr (std::is_same<T, F>::value) {
          if (direct) {
            rows[j] = p;
            continue;
          }
        }
        pack_rows<F, T>(packed[j], columns.width, p, x.s, first, last, s.W, F(1), end);
        rows[j] = packed[j] - first * columns.width;
      }
      const int64_t row = direct ? x.s.h : columns.width;
      auto go = [&](auto negative, auto relu) {
        march_rows<F, negative, relu>(part, rows, n, row, s.H, r0, r1, terms, columns);
      };
      if (negative) channels.relu ? go(std::true_type(), std::true_type()) : go(std::true_type(), std::false_type());
      else channels.relu ? go(std::false_type(), std::true_type()) : go(std::false_type(), std::false_type());
      i += n, in_part += n;
      if (in_part >= BLOCK) {
        for (int64_t q = 0; q < count; q += LANES<F>)
          store(total + q, load(total + q) + load(part + q)), store(part + q, Vec<F>{});
        in_part = 0;
      }
    }
  }
  for (int64_t r = r0; r < r1; ++r) {
    const F *t = total + (r - r0) * columns.width, *p = part + (r - r0) * columns.width;
    F* const to = z + r * s.W;
    if (s.W < LANES<F>) {
      const Vec<F> sum = load(t) + load(p);
      store_some<F>(to, sum, int(s.W), false);
    } else {
      for (int64_t j = 0; j < columns.vectors; ++j)
        store(to + columns.column(j), load(t + j * LANES<F>) + load(p + j * LANES<F>));
    }
  }
}

}  // namespace ulsam
