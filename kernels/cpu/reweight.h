// y = x + A x of one image and subspace, and whether all of it is finite.
//
// Every x is read here, so this is where what is not finite shows: y 0 is then NaN, and a sum of them too.
#pragma once

#include "parameters.h"

namespace ulsam {

// One run of memory: y[i] = x[i] + a[i] x[i]; returns a sum that is 0 where every y is finite.
template <class F, class T, class Y>
ULSAM_INLINE Vec<F> reweight_run(Y* y, const T* x, const F* a, int64_t count, Vec<F> seen) {
  constexpr int L = LANES<F>;
  Vec<F> seen2{};
  int64_t i = 0;
  auto step = [&](int64_t i, Vec<F>& seen) {
    const Vec<F> v = load<F>(x + i), out = v + load(a + i) * v;
    store<F, false>(y + i, out);  // where there is a NaN, the map is done again
    seen += out * F(0);
  };
  for (; i + 2 * L <= count; i += 2 * L) step(i, seen), step(i + L, seen2);
  for (; i + L <= count; i += L) step(i, seen);
  if (i < count) {
    if (count >= L) {
      step(count - L, seen);
    } else {
      const Vec<F> v = load_some<F>(x, int(count)), out = v + load_some<F>(a, int(count)) * v;
      store_some<F>(y, out, int(count));
      seen += out * F(0);
    }
  }
  return seen + seen2;
}

// A whole subspace in one run, map behind map; a [P] has room for a vector behind it, where it begins anew.
template <class F, class T, class Y>
ULSAM_INLINE Vec<F> reweight_maps(Y* y, const T* x, F* a, int64_t P, int64_t count) {
  constexpr int L = LANES<F>;
  for (int64_t i = 0; i < L; ++i) a[P + i] = a[i % P];
  Vec<F> seen{};
  auto step = [&](int64_t i, int64_t at) {
    const Vec<F> v = load<F>(x + i), out = v + load(a + at) * v;
    store<F, false>(y + i, out);
    seen += out * F(0);
  };
  const int64_t whole = count - count % L;
  for (int64_t i = 0, at = 0; i < whole; at -= P)
    for (; at < P && i < whole; i += L, at += L) step(i, at);
  if (whole < count) step(count - L, (count - L) % P);
  return seen;
}

// The channels of one pixel: y[i] = x[i] + a x[i].
template <class F, class T, class Y>
ULSAM_INLINE Vec<F> reweight_pixel(Y* y, const T* x, F a, int64_t count, Vec<F> seen) {
  constexpr int L = LANES<F>;
  const Vec<F> a_v = broadcast(a);
  if (count < L) {
    const Vec<F> v = load_some<F>(x, int(count)), out = v + a_v * v;
    store_some<F>(y, out, int(count));
    return seen + out * F(0);
  }
  for (int64_t i = 0; i < count; i += L) {
    const int64_t c = std::min(i, count - L);
    const Vec<F> v = load<F>(x + c), out = v + a_v * v;
    store<F, false>(y + c, out);
    seen += out * F(0);
  }
  return seen;
}

// Rows [r0, r1) of the subspace; a [P] has room for a vector behind it. Returns whether every y is finite.
template <class F, class T, class Y>
ULSAM_APART bool reweight(View<Y> y, View<const T> x, F* a, const Shape& s, int64_t r0, int64_t r1) {
  Vec<F> seen{};
  const int64_t G = s.G();
  const Order order = order_of<F>(x.s, s);
  if (order == Order::PLANES && order_of<F>(y.s, s) == order) {
    const bool joined = x.s.rows_joined(s) && y.s.rows_joined(s);
    const bool dense = joined && x.s.c == s.P() && y.s.c == s.P() && G * s.P() >= LANES<F>;
    if (dense && r0 == 0 && r1 == s.H) return sum_lanes<F>(reweight_maps<F>(y.p, x.p, a, s.P(), G * s.P())) == 0;
    for (int64_t c = 0; c < G; ++c) {
      const View<const T> from = x.at(0, c);
      const View<Y> to = y.at(0, c);
      if (joined) {
        seen = reweight_run<F>(to.row(r0), from.row(r0), a + r0 * s.W, (r1 - r0) * s.W, seen);
      } else {
        for (int64_t r = r0; r < r1; ++r) seen = reweight_run<F>(to.row(r), from.row(r), a + r * s.W, s.W, seen);
      }
    }
  } else if (order == Order::PIXELS && order_of<F>(y.s, s) == order) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t w = 0; w < s.W; ++w)
        seen = reweight_pixel<F>(y.row(r) + w * y.s.w, x.row(r) + w * x.s.w, a[r * s.W + w], G, seen);
  } else {
    F sum = 0;
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t w = 0; w < s.W; ++w)
        for (int64_t c = 0; c < G; ++c) {
          const F v = get(x.row(r) + w * x.s.w + c * x.s.c), out = v + a[r * s.W + w] * v;
          put(y.row(r) + w * y.s.w + c * y.s.c, out);
          sum += out * F(0);
        }
    seen[0] += sum;
  }
  return sum_lanes<F>(seen) == 0;
}

// The whole subspace as reference: an infinite x stays infinite where A is 0.
template <class F, class T, class Y>
ULSAM_APART void exact_reweight(View<Y> y, View<const T> x, const F* a, const Shape& s) {
  for (int64_t c = 0; c < s.G(); ++c)
    for (int64_t r = 0; r < s.H; ++r)
      for (int64_t w = 0; w < s.W; ++w) {
        const F v = get(x.row(r) + w * x.s.w + c * x.s.c), A = a[r * s.W + w];
        put(y.row(r) + w * y.s.w + c * y.s.c, std::isfinite(v) ? v + A * v : (1 + A) * v);
      }
}

}  // namespace ulsam
