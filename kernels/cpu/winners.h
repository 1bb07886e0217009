// The gradient of a window maximum: s[q] = sum of dl[p] over the windows p whose winner is q, and what is made of it.
//
// max_pool2d's winner is the first maximum in row-major order: in each row the leftmost, h[r,w] being its value, then
// the topmost row. So a window's dl goes to one of three rows of its column, which gives e, and e of a pixel to one of
// three columns of its row. Either is a march past numbers of which one goes to the first maximum of three neighbours:
//
//     before   at > before is false, and next > before is false
//     at       at > before, and next > at is false
//     next     next > at and next > before
//
// x is kappa x here (see parameters.h), a vector of channels at each pixel. Beyond the edges stands -inf.
#pragma once

#include "parameters.h"
#include "strip.h"

namespace ulsam {

// What one vector of channels is multiplied with.
template <class F>
struct Factors {
  Vec<F> kappa, size, shift;  // u = act_u(size kappa x + shift)
  Vec<F> mean, factor;        // sums are of s (x - mean); ds = factor s
  Vec<F> sx{}, ss{};          // sum s (x - mean), sum s
};

// The march.
template <class F>
struct Winners {
  Vec<F> before, at;
  Mask<F> rose;                 // at > before
  Vec<F> of_before{}, of_at{};  // what they have got so far

  // From the first number on, or from one that has another before it.
  explicit Winners(Vec<F> first) : before(broadcast(-INF<F>)), at(first), rose(~Mask<F>{}) {}
  Winners(Vec<F> before_, Vec<F> first) : before(before_), at(first), rose((Mask<F>)(first > before_)) {}

  // The window around `at` gives d; returns all that `before` gets.
  ULSAM_INLINE Vec<F> window(Vec<F> next, Vec<F> d) {
    const Mask<F> rises = (Mask<F>)(next > at), over = (Mask<F>)(next > before);
    const Vec<F> all = of_before + unless<F>(rose | over, d);
    of_before = of_at + unless<F>(rises, (Vec<F>)(rose & (Mask<F>)d));
    of_at = (Vec<F>)(rises & over & (Mask<F>)d);
    before = at, at = next, rose = rises;
    return all;
  }
};

// A strip's buffers: kappa x (and x) of its rows and of two rows on either side, and e of its rows, later ds.
template <class F>
struct Strip {
  Cut rows{};
  Vec<F> *kx{}, *x{}, *e{};

  static Cut rows_of(const Shape& s) { return cut(s.H, std::max<int64_t>(4, 131072 / ULSAM_VECTOR_BYTES / s.W)); }
  static int64_t numbers(const Shape& s) { return Scratch<F>::rounded((rows_of(s).size + 4) * s.W * LANES<F>); }
  static int64_t room(const Shape& s) { return 3 * numbers(s); }
  Strip() = default;
  Strip(const Shape& s, Scratch<F>& scratch) : rows(rows_of(s)) {
    kx = (Vec<F>*)scratch.take(numbers(s)), x = (Vec<F>*)scratch.take(numbers(s));
    e = (Vec<F>*)scratch.take(numbers(s)) + 2 * s.W;
  }
};

// e of rows [r0, r1) in column w; x: of row `first`, e: of row r0, before which two rows are overwritten; dl [P].
template <class F, bool LEFT, bool RIGHT>
ULSAM_APART void march_down(Vec<F>* e, const Vec<F>* x, const F* dl, const Shape& s, int64_t first, int64_t r0,
                            int64_t r1, int64_t w) {
  const int64_t from = std::max<int64_t>(r0 - 1, 0), until = std::min(r1 + 1, s.H);  // windows that reach these rows
  auto across = [](const Vec<F>* p) {
    Vec<F> h = *p;
    if constexpr (LEFT) h = maximum(h, p[-1]);
    if constexpr (RIGHT) h = maximum(h, p[1]);
    return h;
  };
  x += (from - first) * s.W + w, dl += from * s.W + w, e += (from - 1 - r0) * s.W + w;
  Winners<F> winners = from > 0 ? Winners<F>(across(x - s.W), across(x)) : Winners<F>(across(x));
  for (int64_t r = from; r < std::min(until, s.H - 1); ++r, dl += s.W, e += s.W)
    *e = winners.window(across(x += s.W), broadcast(*dl));
  if (until == s.H) *e = winners.window(broadcast(-INF<F>), broadcast(*dl)), e[s.W] = winners.of_before;
}

// Along a row: e becomes ds, and the sums grow. kx, x, e [W]; x: kappa x or x, to be summed with s.
template <class F, bool RELU>
ULSAM_APART void march_along(Factors<F>& f, Vec<F>* e, const Vec<F>* kx, const Vec<F>* x, Vec<F> mean, int64_t W,
                             int64_t rows) {
  const Vec<F> size = f.size, shift = f.shift, factor = f.factor;
  Vec<F> sx{}, ss{};
  for (int64_t r = 0; r < rows; ++r, e += W, kx += W, x += W) {
    auto finish = [&](int64_t w, Vec<F> s) {
      if constexpr (RELU) s = unless<F>((Mask<F>)(kx[w] * size + shift <= Vec<F>{}), s);
      sx += s * (x[w] - mean), ss += s;
      e[w] = factor * s;
    };
    Winners<F> winners(kx[0]);
    if (W > 1) winners.window(kx[1], e[0]);
    for (int64_t w = 2; w < W; ++w) finish(w - 2, winners.window(kx[w], e[w - 1]));
    const Vec<F> s = winners.window(broadcast(-INF<F>), e[W - 1]);
    if (W > 1) finish(W - 2, s);
    finish(W - 1, winners.of_before);
  }
  f.sx += sx, f.ss += ss;
}

// A vector of channels, with its factors: sums into f, dx of the strips [j0, j1). a, dl [P].
template <class F, bool RELU, class T, class DT>
void route(Factors<F>& f, const Lanes<T>& dx, const Lanes<const DT>& D, const Lanes<const T>& x, const F* a,
           const F* dl, const Shape& s, const Strip<F>& strip, int64_t j0, int64_t j1) {
  bool zero = false;  // kappa x says nothing of x where kappa is 0
  for (int i = 0; i < LANES<F>; ++i) zero |= f.kappa[i] == 0;
  const Vec<F> mean = zero ? f.mean : f.mean * f.kappa;
  for (int64_t j = j0; j < j1; ++j) {
    const int64_t r0 = strip.rows.begin(j), r1 = strip.rows.end(j);
    const int64_t first = std::max<int64_t>(r0 - 2, 0), last = std::min(r1 + 2, s.H), above = (r0 - first) * s.W;
    gather_strip<F, T>(strip.kx, x, s, first, last, f.kappa);
    if (zero) gather_strip<F, T>(strip.x, x, s, first, last, broadcast(F(1)));
    for (int64_t w = 0; w < s.W; ++w) {
      auto go = [&](auto left, auto right) {
        march_down<F, left, right>(strip.e, strip.kx, dl, s, first, r0, r1, w);
      };
      if (w == 0) s.W == 1 ? go(std::false_type(), std::false_type()) : go(std::false_type(), std::true_type());
      else w + 1 == s.W ? go(std::true_type(), std::false_type()) : go(std::true_type(), std::true_type());
    }
    march_along<F, RELU>(f, strip.e, strip.kx + above, (zero ? strip.x : strip.kx) + above, mean, s.W, r1 - r0);
    if (D.at.p) scatter_strip<F, true, T, DT>(dx, strip.e, D, a, s, r0, r1);
    else scatter_strip<F, false, T, DT>(dx, strip.e, D, a, s, r0, r1);
  }
  if (!zero) f.sx *= f.kappa;
}

}  // namespace ulsam
