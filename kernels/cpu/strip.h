// A strip of rows with a vector of channels at each pixel: how x gets there, and dx out of it.
//
// Where channels are neighbours in memory (PIXELS), a pixel is a vector already. In PLANES order squares of channels
// and pixels are turned over. Else numbers move one by one. Lanes beyond the last channel repeat it and are written
// nowhere.
#pragma once

#include "layout.h"
#include "transpose.h"

namespace ulsam {

// The channels of a strip's lanes in a tensor, from the first on.
template <class T>
struct Lanes {
  View<T> at;
  int count;
  Order order;

  T* of(int lane) const { return at.p + std::min(lane, count - 1) * at.s.c; }
};

// f(begin, row, count) for every run of pixels of rows [r0, r1) that are neighbours in memory, `begin` of them being
// before it in the strip.
template <class Function>
ULSAM_INLINE void each_run(bool joined, int64_t W, int64_t r0, int64_t r1, const Function& f) {
  if (joined) return f(0, r0, (r1 - r0) * W);
  for (int64_t r = r0; r < r1; ++r) f((r - r0) * W, r, W);
}

// to[(r - r0) W + w] = factor x of rows [r0, r1).
template <class F, class T>
ULSAM_APART void gather_strip(Vec<F>* to, const Lanes<const T>& x, const Shape& s, int64_t r0, int64_t r1,
                              Vec<F> factor) {
  constexpr int L = LANES<F>;
  if (x.order == Order::PIXELS) {
    auto rows = [&](auto whole) {
      for (int64_t r = r0; r < r1; ++r) {
        const T* p = x.at.row(r);
        for (int64_t w = 0; w < s.W; ++w, p += x.at.s.w)
          *to++ = (whole ? load<F>(p) : load_some<F>(p, x.count)) * factor;
      }
    };
    return x.count == L ? rows(std::true_type()) : rows(std::false_type());
  }
  const T* from[L];
  for (int i = 0; i < L; ++i) from[i] = x.of(i);
  each_run(x.at.s.rows_joined(s), s.W, r0, r1, [&](int64_t begin, int64_t r, int64_t count) {
    const int64_t row = r * x.at.s.h;
    Vec<F>* const run = to + begin;
    if (x.order == Order::PLANES && count >= L) {
      for (int64_t p = 0; p < count; p += L) {
        const int64_t at = std::min(p, count - L);
        Vec<F> square[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = load<F>(from[i] + row + at);
        transpose<F>(square);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) run[at + i] = square[i] * factor;
      }
    } else {
      for (int64_t p = 0; p < count; ++p) {
        Vec<F> v;
        for (int i = 0; i < L; ++i) v[i] = get(from[i] + row + p * x.at.s.w);
        run[p] = v * factor;
      }
    }
  });
}

// Numbers. Sixteen short streams are more than the hardware foresees: 64x56x56 0.37 ns a number, without 0.53.
constexpr int64_t AHEAD = 64;

// dx = ds + D (1 + A) in rows [r0, r1); D.at.p null: y had no gradient. a: A of row 0.
template <class F, bool GIVEN, class T, class DT>
ULSAM_APART void scatter_strip(const Lanes<T>& dx, const Vec<F>* ds, const Lanes<const DT>& D, const F* a,
                               const Shape& s, int64_t r0, int64_t r1) {
  constexpr int L = LANES<F>;
  auto with = [](Vec<F> ds, const DT* d, Vec<F> a, int count = LANES<F>) {
    if constexpr (!GIVEN) return ds;
    const Vec<F> v = load_some<F>(d, count);
    return ds + (v + a * v);
  };
  a += r0 * s.W;
  if (dx.order == Order::PIXELS && (!GIVEN || D.order == Order::PIXELS)) {
    auto rows = [&](auto whole) {
      const int count = whole ? L : dx.count;
      for (int64_t r = r0; r < r1; ++r) {
        T* o = dx.at.row(r);
        const DT* d = GIVEN ? D.at.row(r) : nullptr;
        for (int64_t w = 0; w < s.W; ++w, o += dx.at.s.w) {
          store_some<F>(o, with(*ds++, d, broadcast(*a++), count), count);
          if constexpr (GIVEN) d += D.at.s.w;
        }
      }
    };
    return dx.count == L ? rows(std::true_type()) : rows(std::false_type());
  }
  const bool joined = dx.at.s.rows_joined(s) && (!GIVEN || D.at.s.rows_joined(s));
  const bool planes = dx.order == Order::PLANES && (!GIVEN || D.order == Order::PLANES);
  T* to[L];
  const DT* from[L];
  for (int i = 0; i < L; ++i) to[i] = dx.of(i), from[i] = GIVEN ? D.of(i) : nullptr;
  each_run(joined, s.W, r0, r1, [&](int64_t begin, int64_t r, int64_t count) {
    const Vec<F>* const run = ds + begin;
    if (planes && count >= L) {
      for (int64_t p = 0; p < count; p += L) {
        const int64_t at = std::min(p, count - L), o = r * dx.at.s.h + at, d = r * D.at.s.h + at;
        Vec<F> square[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = run[at + i];
        transpose<F>(square);
        const Vec<F> a_p = load(a + begin + at);
        if (dx.count == L) {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) {
            if constexpr (GIVEN) __builtin_prefetch(from[i] + d + AHEAD);
            __builtin_prefetch(to[i] + o + AHEAD, 1);
            store<F>(to[i] + o, with(square[i], from[i] + d, a_p));
          }
        } else {
          for (int i = 0; i < dx.count; ++i) store<F>(to[i] + o, with(square[i], from[i] + d, a_p));
        }
      }
    } else {
      for (int64_t p = 0; p < count; ++p)
        for (int i = 0; i < dx.count; ++i) {
          F out = run[p][i];
          if constexpr (GIVEN) {
            const F d = F(get(from[i] + r * D.at.s.h + p * D.at.s.w));
            out += d + a[begin + p] * d;
          }
          put(to[i] + r * dx.at.s.h + p * dx.at.s.w, out);
        }
    }
  });
}

}  // namespace ulsam
