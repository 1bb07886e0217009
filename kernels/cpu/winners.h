// The gradient of a window maximum: s[q] = sum of dl[p] over the windows p whose winner is q, and what is made of it.
//
// max_pool2d's winner is the first maximum in row-major order: in each row the leftmost, h[r,w] being its value, then
// the topmost row. So dl goes down one column to the winner's row, then along that row:
//
//     e[r] = dl[r-1] [h[r] > h[r-1], h[r-2]] + dl[r] [h[r] > h[r-1], h[r] >= h[r+1]] + dl[r+1] [h[r] >= h[r+1], h[r+2]]
//     s[w] = e[w-1]  [x[w] > x[w-1], x[w-2]] + e[w]  [x[w] > x[w-1], x[w] >= x[w+1]] + e[w+1]  [x[w] >= x[w+1], x[w+2]]
//
// of which columns and rows are left out. x is kappa x here (see parameters.h). Beyond the edges stands NaN, to which
// no comparison is true: each condition is the negation of one that asks whether the neighbour wins. dl is 0 there.
//
// A strip of rows of one channel (STEP 1), or of a vector of channels (STEP LANES), goes through four steps in buffers
// that L1 holds; rows are apart by W + 2 pixels: kappa x; h; e; then s, u's ReLU, the sums over pixels, and dx.
#pragma once

#include "parameters.h"
#include "strip.h"
#include "window.h"

namespace ulsam {

// What one channel is multiplied with, or in the lanes several; D is the gradient of y.
template <class F>
struct Factors {
  Vec<F> kappa, size, shift;  // u = act_u(size kappa x + shift)
  Vec<F> mean, factor;        // sums are of s (x - mean); dx = D (1 + A) + factor s
  Vec<F> sx{}, ss{};          // sum s (x - mean), sum s
};

template <class F>
constexpr int64_t dl_room(const Shape& s) {
  return (s.H + 3) * (s.W + 2) + LANES<F>;
}

// dl [H, W] as `route` reads it: [H + 3, W + 2] with 0 around, row 0 being one of them.
template <class F>
void surround(F* to, const F* dl, const Shape& s) {
  std::fill(to, to + dl_room<F>(s), F(0));
  for (int64_t r = 0; r < s.H; ++r) std::copy(dl + r * s.W, dl + (r + 1) * s.W, to + (r + 1) * (s.W + 2));
}

// The three terms of e and of s: c against its neighbours, two before and two behind it.
template <class F>
ULSAM_INLINE Vec<F> won(Vec<F> c, Vec<F> before2, Vec<F> before, Vec<F> behind, Vec<F> behind2, Vec<F> from_before,
                        Vec<F> own, Vec<F> from_behind) {
  const Mask<F> b = (Mask<F>)(before >= c), d = (Mask<F>)(behind > c);
  return unless<F>(b | (Mask<F>)(before2 >= c), from_before) + unless<F>(b | d, own) +
         unless<F>(d | (Mask<F>)(behind2 > c), from_behind);
}

// h of the rows around [r0, r1), NaN where there are none.
template <class F, int STEP>
ULSAM_INLINE void across_rows(const Strip<F>& strip, const Shape& s, int64_t r0, int64_t r1) {
  const int64_t row = strip.pitch * STEP;
  const int64_t first = std::max<int64_t>(r0 - 2, 0), last = std::min(r1 + 2, s.H);
  const int64_t missing = (first - (r0 - 2)) * row, count = (last - first) * row;
  const Vec<F> nan = broadcast(NOT_A_NUMBER<F>);
  for (int64_t i = 0; i < missing; i += LANES<F>) store(strip.h + i, nan);
  const F* x = strip.kx + missing;
  F* h = strip.h + missing;
  for (int64_t i = 0; i < count; i += LANES<F>)
    store(h + i, maximum(load(x + i + STEP), maximum(load(x + i - STEP), load(x + i))));
  h += count;
  for (F* const end = strip.h + (r1 - r0 + 4) * row; (h += LANES<F>) < end + LANES<F>;) store(h - LANES<F>, nan);
}

// e of rows [r0, r1): dl [(H + 2), W + 2] with a row and two columns of 0 around it.
template <class F, int STEP>
ULSAM_INLINE void down_columns(const Strip<F>& strip, int64_t r0, int64_t r1, const F* dl) {
  const int64_t pitch = strip.pitch, row = pitch * STEP, count = (r1 - r0) * row;
  const F* const d = dl + r0 * pitch;  // of row r0 - 1
  const F* const h = strip.h;
  std::fill(strip.e - STEP, strip.e, F(0));
  for (int64_t i = 0; i < count; i += LANES<F>) {
    Vec<F> up, own, down;
    if constexpr (STEP == 1) {
      up = load(d + i), own = load(d + i + pitch), down = load(d + i + 2 * pitch);
    } else {
      const int64_t p = i / STEP;
      up = broadcast(d[p]), own = broadcast(d[p + pitch]), down = broadcast(d[p + 2 * pitch]);
    }
    store(strip.e + i, won<F>(load(h + i + 2 * row), load(h + i), load(h + i + row), load(h + i + 3 * row),
                              load(h + i + 4 * row), up, own, down));
  }
}

// s at one vector of the strip: kx, e there.
template <class F, int STEP, bool RELU>
ULSAM_INLINE Vec<F> along_row(const F* kx, const F* e, const Factors<F>& f) {
  const Vec<F> c = load(kx);
  Vec<F> s = won<F>(c, load(kx - 2 * STEP), load(kx - STEP), load(kx + STEP), load(kx + 2 * STEP), load(e - STEP),
                    load(e), load(e + STEP));
  if constexpr (RELU) s = unless<F>((Mask<F>)(c * f.size + f.shift <= Vec<F>{}), s);
  return s;
}

// What the last step reads and writes of one channel, or in the lanes of several; D.p null: y had no gradient.
template <class F, class T, class DT>
struct Rows {
  View<T> dx;
  T* dx_end;  // where a vector is wider than a row: what lies before this is written later
  View<const DT> D;
  const DT* D_end;  // up to here D may be read
  const F* a;       // [P], with room for a vector behind it
};

// How the rows of one channel lie in D and dx.
enum class Lie {
  PLAIN,   // neighbours in memory, at least a vector of them
  NARROW,  // neighbours in memory, fewer, and what is behind a row may be read, and overwritten before it is written
  ANY
};

// s, u's ReLU, the sums and dx of rows [r0, r1) of one channel. x: kappa x or x, to be summed with s; counted: the
// lanes of a row's last vector that no other vector has.
template <class F, bool RELU, bool GIVEN, Lie LIE, class T, class DT>
ULSAM_APART void finish_rows(Factors<F>& f, const Rows<F, T, DT>& to, const Strip<F>& strip, const F* x, int64_t above,
                             const Columns<F>& columns, Mask<F> counted, Vec<F> mean, int64_t r0, int64_t r1) {
  using V = Vec<F>;
  constexpr int L = LANES<F>;
  const int64_t W = columns.W, pitch = strip.pitch, lanes = std::min<int64_t>(W, L);
  const int64_t last = columns.column(columns.vectors - 1), dw = to.D.s.w, ow = to.dx.s.w;
  const int64_t dh = to.D.s.h, oh = to.dx.s.h;
  const Factors<F> g = f;
  V sx{}, ss{};
  const F *kx = strip.kx + (above + 2) * pitch, *e = strip.e + above * pitch, *a = to.a + r0 * W;
  x += (above + 2) * pitch;
  const DT* d = GIVEN ? to.D.row(r0) : nullptr;
  T* o = to.dx.row(r0);
  for (int64_t r = r0; r < r1; ++r, kx += pitch, x += pitch, e += pitch, a += W, o += oh) {
    auto column = [&](int64_t w, auto is_last) {
      V s = along_row<F, 1, RELU>(kx + w, e + w, g);
      V out = g.factor * s;
      if constexpr (GIVEN) {
        const V dv = LIE == Lie::ANY ? gather<F, DT>(d + w * dw, dw, lanes) : load<F>(d + w);
        out += dv + load(a + w) * dv;
      }
      if constexpr (LIE == Lie::ANY) scatter<F, T>(o + w * ow, ow, lanes, out);
      else store<F>(o + w, out);
      V xc = load(x + w) - mean;
      if constexpr (is_last) {
        s = (V)((Mask<F>)s & counted);
        if constexpr (LIE != Lie::PLAIN) xc = (V)((Mask<F>)xc & counted);
      }
      sx += s * xc, ss += s;
    };
    if constexpr (LIE != Lie::NARROW)
      for (int64_t w = 0; w < last; w += L) column(w, std::false_type());
    column(last, std::true_type());
    if constexpr (GIVEN) d += dh;
  }
  f.sx += sx, f.ss += ss;
}

// The same of a vector of channels.
template <class F, bool RELU, bool GIVEN, class T, class DT>
ULSAM_APART void finish_pixels(Factors<F>& f, const Rows<F, T, DT>& to, const Strip<F>& strip, const F* x, int64_t W,
                               Vec<F> mean, int64_t r0, int64_t r1) {
  using V = Vec<F>;
  constexpr int L = LANES<F>;
  const int64_t pitch = strip.pitch * L, dw = to.D.s.w, ow = to.dx.s.w;
  const Factors<F> g = f;
  V sx{}, ss{};
  const F *kx = strip.kx + 2 * pitch, *e = strip.e, *a = to.a + r0 * W;
  x += 2 * pitch;
  for (int64_t r = r0; r < r1; ++r, kx += pitch, x += pitch, e += pitch, a += W) {
    const DT* d = GIVEN ? to.D.row(r) : nullptr;
    T* o = to.dx.row(r);
    for (int64_t w = 0; w < W; ++w, o += ow) {
      const V s = along_row<F, L, RELU>(kx + w * L, e + w * L, g);
      V out = g.factor * s;
      if constexpr (GIVEN) {
        const V dv = load<F>(d);
        out += dv + broadcast(a[w]) * dv;
        d += dw;
      }
      store<F>(o, out);
      sx += s * (load(x + w * L) - mean), ss += s;
    }
  }
  f.sx += sx, f.ss += ss;
}

// Where the rows [r0, r1) end that whole vectors can be read from and written to.
template <class F, class T, class DT>
int64_t whole_rows(const Rows<F, T, DT>& to, int64_t r0, int64_t r1) {
  while (r1 > r0 && (to.dx.row(r1 - 1) + LANES<F> > to.dx_end ||
                     (to.D.p && to.D.row(r1 - 1) + LANES<F> > to.D_end)))
    --r1;
  return r1;
}

// `count` channels, each with factors, rows and a strip of its own, or one vector of channels: sums into f, dx of all
// rows. x: at the channels, which may be read up to x_end; dl is surrounded by 0.
template <class F, int STEP, bool RELU, class T, class DT>
void route(Factors<F>* f, const Rows<F, T, DT>* to, const View<const T>* x, int count, const T* x_end, const F* dl,
           const Shape& s, const Strip<F>* strips, const Columns<F>& columns) {
  using V = Vec<F>;
  constexpr int L = LANES<F>;
  const int64_t row = strips->pitch * STEP;
  const V unit = broadcast(F(1));
  const bool runs = to->dx.s.w == 1 && (!to->D.p || to->D.s.w == 1);
  const bool plain = runs && s.W >= L, narrow = runs && s.W < L;
  Mask<F> counted{};
  if (STEP == 1)
    for (int i = 0; i < L; ++i) counted[i] = s.W < L ? -(i < s.W) : -(i >= columns.vectors * L - s.W);
  bool zero[Strip<F>::MOST] = {};  // kappa x says nothing of x where kappa is 0
  for (int c = 0; c < count; ++c)
    for (int i = 0; i < (STEP == 1 ? 1 : L); ++i) zero[c] |= f[c].kappa[i] == 0;
  for (int64_t j = 0; j < strips->cut_.parts; ++j) {
    const int64_t r0 = strips->cut_.begin(j), r1 = strips->cut_.end(j);
    const int64_t first = std::max<int64_t>(r0 - 2, 0), last = std::min(r1 + 2, s.H);
    const int64_t skipped = (first - (r0 - 2)) * row;
    for (int c = 0; c < count; ++c) {
      pack<F, STEP, T>(strips[c].kx + skipped, x[c], s, first, last, f[c].kappa, x_end);
      if (zero[c]) pack<F, STEP, T>(strips[c].raw + skipped, x[c], s, first, last, unit, x_end);
    }
    for (int c = 0; c < count; ++c) across_rows<F, STEP>(strips[c], s, r0, r1);
    for (int c = 0; c < count; ++c) down_columns<F, STEP>(strips[c], r0, r1, dl);
    for (int c = 0; c < count; ++c) {
      const F* const values = zero[c] ? strips[c].raw : strips[c].kx;
      const V mean = zero[c] ? f[c].mean : f[c].mean * f[c].kappa;
      auto finish = [&](auto given) {
        if constexpr (STEP > 1) finish_pixels<F, RELU, given>(f[c], to[c], strips[c], values, s.W, mean, r0, r1);
        else {
          auto rows = [&](auto lie, int64_t from, int64_t until) {
            finish_rows<F, RELU, given, lie>(f[c], to[c], strips[c], values, from - r0, columns, counted, mean, from,
                                             until);
          };
          const int64_t whole = plain ? r1 : narrow ? whole_rows<F>(to[c], r0, r1) : r0;
          if (plain) rows(std::integral_constant<Lie, Lie::PLAIN>(), r0, r1);
          else if (r0 < whole) rows(std::integral_constant<Lie, Lie::NARROW>(), r0, whole);
          if (whole < r1) rows(std::integral_constant<Lie, Lie::ANY>(), whole, r1);
        }
      };
      to[c].D.p ? finish(std::true_type()) : finish(std::false_type());
    }
  }
  for (int c = 0; c < count; ++c)
    if (!zero[c]) f[c].sx *= f[c].kappa;
}

}  // namespace ulsam
