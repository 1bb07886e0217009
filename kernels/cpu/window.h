// Logits of rows of a map in PLANES order: z[p] = b + sum over c of v act_u(size max over W(p) of kappa x + shift).
//
// A tile is NV vectors of columns; it marches down the rows and keeps the horizontal maxima of the last two. A row
// costs three loads a vector, the columns themselves and those beside them. What is loaded from beyond an edge is
// another row's; NaN replaces it, which loses every comparison. The last vector of a row ends with the row, so it may
// overlap the one before it: z is kept with NV whole vectors to a row. A map narrower than a vector is one vector with
// lanes to spare.
//
// Channels go outside the rows: a strip of z stays in L1 and each channel adds to it. Of maps one or two vectors wide
// two channels go at once, so that z is loaded and stored half as often (256x7x7: 0.30 ns a number, one by one 0.34,
// four at once 0.33; 128x14x14: 0.20, 0.23, 0.23). Those of kappa < 0 take minima and a negative weight. After BLOCK
// channels the sums move to a second buffer, since a longer chain would lose more than a sum in pairs.
#pragma once

#include "parameters.h"
#include "transpose.h"

namespace ulsam {

constexpr int BLOCK = 16;

// Tiles of more than two vectors and several channels at once are compiled for float only.
template <class F>
constexpr bool WIDE = std::is_same<F, float>::value;

// Columns of the vectors that cover a row, and the lanes whose neighbours are beyond its edges.
template <class F>
struct Columns {
  int64_t W, vectors, width;  // width: of a row of z, in numbers
  Mask<F> left, right;

  explicit Columns(int64_t W_) : W(W_), vectors((W_ + LANES<F> - 1) / LANES<F>), width(vectors * LANES<F>) {
    for (int i = 0; i < LANES<F>; ++i) left[i] = -(i == 0), right[i] = -(i == std::min<int64_t>(W, LANES<F>) - 1);
  }
  int64_t column(int64_t j) const { return std::max<int64_t>(0, std::min<int64_t>(j * LANES<F>, W - LANES<F>)); }
};

template <bool NEGATIVE, class V>
ULSAM_INLINE V extreme(V a, V b) {
  return NEGATIVE ? minimum(a, b) : maximum(a, b);
}

// The extreme of three columns; LEFT, RIGHT: the lanes of these masks have no neighbour there.
template <class F, bool NEGATIVE, bool LEFT, bool RIGHT>
ULSAM_INLINE Vec<F> horizontal(const F* p, const Mask<F>& left, const Mask<F>& right) {
  Vec<F> l = load(p - 1), r = load(p + 1);
  if constexpr (LEFT) l = (Vec<F>)((Mask<F>)l | left);
  if constexpr (RIGHT) r = (Vec<F>)((Mask<F>)r | right);
  return extreme<NEGATIVE>(r, extreme<NEGATIVE>(l, load(p)));
}

// Adds `count` channels, CH at once, to rows [r0, r1) of z; x: row 0 of each channel, `row` between rows. The tile is
// the NV vectors from `first` on; LEFT, RIGHT: an edge of the map is among them.
template <class F, int NV, int CH, bool NEGATIVE, bool RELU, bool LEFT, bool RIGHT>
ULSAM_APART void march(F* z, const F* const* x, const Term<F>* terms, int count, int64_t row, int64_t H, int64_t r0,
                       int64_t r1, const Columns<F>& columns, int64_t first) {
  using V = Vec<F>;
  const Mask<F> left = columns.left, right = columns.right;
  const int64_t width = columns.width, column = columns.column(first);
  // column of the tile's last vector: it may overlap the one before it, the others follow each other
  const int64_t last = columns.column(first + NV - 1) - column;
  auto across = [&](const F* p, auto j) {
    constexpr bool L = LEFT && j == 0, R = RIGHT && j == NV - 1;
    return horizontal<F, NEGATIVE, L, R>(p + (j == NV - 1 ? last : j * LANES<F>), left, right);
  };
  for (int c = 0; c + CH <= count; c += CH, x += CH, terms += CH) {
    V size[CH], shift[CH], v[CH];
    const F* p[CH];
#pragma GCC unroll 4
    for (int i = 0; i < CH; ++i) {
      size[i] = broadcast(NEGATIVE ? -terms[i].size : terms[i].size);
      shift[i] = broadcast(terms[i].shift), v[i] = broadcast(terms[i].v);
      p[i] = x[i] + column + r0 * row;
    }
    auto add = [&](V z, V m, int i) {
      if constexpr (RELU) return z + v[i] * relu<F>(m * size[i] + shift[i]);
      return z + size[i] * m;
    };
    V h0[CH][NV], h1[CH][NV];  // of the row above and of this one
    const int64_t above = r0 > 0 ? -row : 0;
    unrolled<NV>([&](auto j) {
#pragma GCC unroll 4
      for (int i = 0; i < CH; ++i) h0[i][j] = across(p[i] + above, j), h1[i][j] = across(p[i], j);
    });
    F* to = z + first * LANES<F>;
    int64_t r = r0;
    for (; r + 2 <= r1; r += 2, to += 2 * width) {
      const int64_t two = r + 2 < H ? 2 * row : row;
      unrolled<NV>([&](auto j) {
        V z0 = load(to + j * LANES<F>), z1 = load(to + width + j * LANES<F>);
#pragma GCC unroll 4
        for (int i = 0; i < CH; ++i) {
          const V h2 = across(p[i] + row, j), h3 = across(p[i] + two, j), m = extreme<NEGATIVE>(h1[i][j], h2);
          z0 = add(z0, extreme<NEGATIVE>(h0[i][j], m), i);
          z1 = add(z1, extreme<NEGATIVE>(m, h3), i);
          h0[i][j] = h2, h1[i][j] = h3;
        }
        store(to + j * LANES<F>, z0), store(to + width + j * LANES<F>, z1);
      });
#pragma GCC unroll 4
      for (int i = 0; i < CH; ++i) p[i] += 2 * row;
    }
    if (r < r1) {
      const int64_t below = r + 1 < H ? row : 0;
      unrolled<NV>([&](auto j) {
        V z0 = load(to + j * LANES<F>);
#pragma GCC unroll 4
        for (int i = 0; i < CH; ++i)
          z0 = add(z0, extreme<NEGATIVE>(extreme<NEGATIVE>(h0[i][j], h1[i][j]), across(p[i] + below, j)), i);
        store(to + j * LANES<F>, z0);
      });
    }
  }
}

template <class F, int NV, int CH, bool NEGATIVE, bool RELU>
void march_tile(F* z, const F* const* x, const Term<F>* terms, int count, int64_t row, int64_t H, int64_t r0,
                int64_t r1, const Columns<F>& columns, int64_t first) {
  const bool left = first == 0, right = first + NV == columns.vectors;
  auto go = [&](auto l, auto r) {
    march<F, NV, CH, NEGATIVE, RELU, l, r>(z, x, terms, count, row, H, r0, r1, columns, first);
  };
  const std::true_type yes;
  const std::false_type no;
  // only what `march_rows` asks for is compiled: several tiles take channels one by one, the narrow tile being the last
  if (left && right) return go(yes, yes);
  if constexpr (CH == 1 && (NV > 1 || !WIDE<F>)) {
    if (right) return go(no, yes);
    if constexpr (NV > 1 + WIDE<F>) left ? go(yes, no) : go(no, no);
  }
}

// Adds `count` channels to a strip of z, rows [r0, r1) of `columns.width` numbers.
template <class F, bool NEGATIVE, bool RELU>
void march_rows(F* z, const F* const* x, const Term<F>* terms, int count, int64_t row, int64_t H, int64_t r0,
                int64_t r1, const Columns<F>& columns) {
  for (int64_t j = 0; j < columns.vectors;) {
    const int64_t left = columns.vectors - j;
    auto go = [&](auto nv, auto ch) {
      const int whole = count - count % ch;
      march_tile<F, nv, ch, NEGATIVE, RELU>(z, x, terms, whole, row, H, r0, r1, columns, j);
      if constexpr (ch > 1)
        march_tile<F, nv, 1, NEGATIVE, RELU>(z, x + whole, terms + whole, count - whole, row, H, r0, r1, columns, j);
      j += nv;
    };
    using std::integral_constant;
    const integral_constant<int, 1> one;
    const integral_constant<int, 2> two;
    const integral_constant<int, 3> three;
    const integral_constant<int, 4> four;
    if constexpr (WIDE<F>) {
      if (columns.vectors == 1) go(one, two);
      else if (columns.vectors == 2) go(two, two);
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

// Channels of one sign that march together: BLOCK, or as many as keep their rows in L1 for one tile after the other.
template <class F>
int together(const Columns<F>& columns, int64_t rows) {
  const int64_t bytes = rows * columns.width * int64_t(sizeof(F));
  return int(std::max<int64_t>(1, std::min<int64_t>(BLOCK, 16384 / bytes)));
}

template <class F>
int64_t planes_scratch(const Shape& s) {
  const Columns<F> columns(s.W);
  const int64_t rows = strips<F>(s).size;
  const int64_t packed = std::max<int64_t>(together(columns, rows), std::min<int64_t>(s.G(), LANES<F>));
  return 2 * Scratch<F>::rounded(rows * columns.width) +
         packed * Scratch<F>::rounded((rows + 2) * columns.width + 2 * LANES<F>);
}

// Addresses that may be read: those from a tensor's first number up to its last.
template <class T>
struct Bounds {
  const T *begin, *end;
};

// z [P] of image and subspace k in rows [r0, r1) = one strip, from x at its first channel.
template <class F, class T>
ULSAM_APART void logits_of_planes(F* z, View<const T> x, Bounds<T> bounds, const Shape& s, int64_t k,
                                  const Channels<F>& channels, int64_t r0, int64_t r1, Scratch<F>& scratch) {
  const Columns<F> columns(s.W);
  const int64_t count = (r1 - r0) * columns.width, c0 = k * s.G();
  const bool turned = order_of<F>(x.s, s) == Order::PIXELS && s.W >= LANES<F>;  // all channels are packed at once
  const int most = turned ? int(s.G()) : together(columns, strips<F>(s).size);
  F* const total = scratch.take(count);
  F* const part = scratch.take(count);
  const int64_t first = std::max<int64_t>(r0 - 1, 0), last = std::min(r1 + 1, s.H);
  F* packed[BLOCK];
  const Vec<F> bias = broadcast(channels.bias[k]);
  for (int64_t q = 0; q < count; q += LANES<F>) store(total + q, bias), store(part + q, Vec<F>{});
  for (int j = 0; j < most; ++j) packed[j] = scratch.take((last - first) * columns.width + 2 * LANES<F>) + LANES<F>;
  // whether a channel's rows can be read where they are, with the numbers beside them
  auto direct = [&](const T* p) {
    return std::is_same<T, F>::value && x.s.w == 1 && p + first * x.s.h > bounds.begin &&
           p + (last - 1) * x.s.h + std::max<int64_t>(s.W, LANES<F>) < bounds.end;
  };
  auto at = [&](int64_t c) { return x.p + (c - c0) * x.s.c; };
  if (turned) {
    F* to[LANES<F>];
    for (int j = 0; j < most; ++j) to[channels.order[c0 + j] - c0] = packed[j];
    planes_of_pixels<F, T>(to, columns.width, x.row(first), x.s, s.G(), last - first, s.W);
  }
  const bool all_direct = direct(at(c0)) && direct(at(c0 + s.G() - 1));  // all others lie between these
  int in_part = 0;
  for (int negative = 0; negative < 2; ++negative) {
    const int64_t begin = negative ? channels.negative_at[k] : c0;
    const int64_t stop = negative ? c0 + s.G() : channels.negative_at[k];
    for (int64_t i = begin; i < stop;) {
      const F* rows[BLOCK];
      const Term<F>* const terms = &channels.terms[i];
      const bool there = all_direct || direct(at(channels.order[i]));
      int n = 0;
      for (; n < std::min(most, BLOCK - in_part) && i < stop; ++n, ++i) {
        const T* const p = at(channels.order[i]);
        if (!all_direct && direct(p) != there) break;
        if constexpr (std::is_same<T, F>::value) {
          if (there) {
            rows[n] = p;
            continue;
          }
        }
        F* const to = packed[turned ? i - c0 : n];
        if (!turned) pack_rows<F, T>(to, columns.width, p, x.s, first, last, s.W, bounds.end);
        rows[n] = to - first * columns.width;
      }
      const int64_t row = there ? x.s.h : columns.width;
      auto go = [&](auto negative, auto relu) {
        march_rows<F, negative, relu>(part, rows, terms, n, row, s.H, r0, r1, columns);
      };
      if (negative) channels.relu ? go(std::true_type(), std::true_type()) : go(std::true_type(), std::false_type());
      else channels.relu ? go(std::false_type(), std::true_type()) : go(std::false_type(), std::false_type());
      in_part += n;
      if (in_part == BLOCK) {  // at the same channels wherever the rows were read
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
      const bool room = r * s.W + LANES<F> <= r1 * s.W;  // what is written behind the row is written again
      room ? store(to, sum) : store_some<F>(to, sum, int(s.W));
    } else {
      for (int64_t j = 0; j < columns.vectors; ++j)
        store(to + columns.column(j), load(t + j * LANES<F>) + load(p + j * LANES<F>));
    }
  }
}

}  // namespace ulsam
