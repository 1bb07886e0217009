// The maximum as max_pool2d has it where numbers are not finite, one number at a time: a NaN wins, of several the last.
//
// The loops with vectors lose a NaN and take shortcuts by which infinity becomes NaN. They notice (what they compute is
// then not finite), and the map or channel is done again here.
#pragma once

#include "parameters.h"

namespace ulsam {

// The winner of the window around (h, w) of kappa x.
template <class F, class T>
struct Winner {
  int64_t h, w;
  F value;  // kappa x there

  Winner(View<const T> x, const Shape& s, F kappa, int64_t h0, int64_t w0) : h(-1), w(-1), value(-INF<F>) {
    for (int64_t i = std::max<int64_t>(h0 - 1, 0); i < std::min(h0 + 2, s.H); ++i)
      for (int64_t j = std::max<int64_t>(w0 - 1, 0); j < std::min(w0 + 2, s.W); ++j) {
        const F kx = kappa * get(x.p + i * x.s.h + j * x.s.w);
        if (h < 0 || kx > value || kx != kx) h = i, w = j, value = kx;
      }
  }
};

// max(u, 0), NaN where u is.
template <class F>
F relu(F u) {
  return u <= 0 ? F(0) : u;
}

// z [P] of subspace k, from x at its first channel.
template <class F, class T>
ULSAM_APART void exact_logits(F* z, View<const T> x, const Shape& s, int64_t k, const Channels<F>& channels) {
  std::fill(z, z + s.P(), channels.relu ? channels.bias[k] : F(0));
  for (int64_t i = 0; i < s.G(); ++i) {
    const int64_t c = k * s.G() + i;
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t w = 0; w < s.W; ++w) {
        const F m = Winner<F, T>(x.at(0, i), s, channels.kappa[c], h, w).value;
        z[h * s.W + w] += channels.relu ? channels.v[c] * relu<F>(channels.size[c] * m + channels.shift[c])
                                        : channels.weight[c] * m;
      }
  }
  if (!channels.relu)
    for (int64_t p = 0; p < s.P(); ++p) z[p] += channels.bias[k];
}

// What one channel gives for the parameters' gradients: sum s (x - mean), sum s, sum dl m.
template <class F>
struct ChannelSums {
  F sx, ss, m;
};

// One channel of the backward; x, dx, D at the channel, D null where y had no gradient; dl, a [P].
template <class F, class T, class DT>
ULSAM_APART ChannelSums<F> exact_route(View<T> dx, View<const DT> D, View<const T> x, const F* a, const F* dl,
                                       const Shape& shape, F scale, F shift, F kappa, F mean, F factor,
                                       bool with_relu) {
  ChannelSums<F> sums{0, 0, 0};
  std::vector<F> s(shape.P(), F(0));
  for (int64_t h = 0; h < shape.H; ++h)
    for (int64_t w = 0; w < shape.W; ++w) {
      const Winner<F, T> winner(x, shape, kappa, h, w);
      const F u = std::abs(scale) * winner.value + shift, d = dl[h * shape.W + w];
      sums.m += d * (with_relu ? relu<F>(u) : u);
      if (!(with_relu && u <= 0)) s[winner.h * shape.W + winner.w] += d;
    }
  for (int64_t h = 0; h < shape.H; ++h)
    for (int64_t w = 0; w < shape.W; ++w) {
      const int64_t p = h * shape.W + w;
      sums.sx += s[p] * (get(x.p + h * x.s.h + w * x.s.w) - mean), sums.ss += s[p];
      F out = factor * s[p];
      if (D.p) {
        const F d = F(get(D.p + h * D.s.h + w * D.s.w));
        out += d + a[p] * d;
      }
      put(dx.p + h * dx.s.h + w * dx.s.w, out);
    }
  return sums;
}

// Whether every x of a subspace is finite.
template <class F, class T>
ULSAM_APART bool all_finite(View<const T> x, const Shape& s) {
  Vec<F> seen{};
  auto run = [&](const T* p, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES<F>)
      seen += load_some<F>(p + i, int(std::min<int64_t>(LANES<F>, count - i))) * F(0);
  };
  const int64_t G = s.G(), P = s.P();
  if (x.s.rows_joined(s) && x.s.c == P) {
    run(x.p, G * P);
  } else if (order_of<F>(x.s, s) == Order::PIXELS) {
    for (int64_t p = 0; p < P; ++p) run(x.row(p / s.W) + p % s.W * x.s.w, G);
  } else {
    for (int64_t c = 0; c < G; ++c)
      for (int64_t h = 0; h < s.H; ++h) {
        const T* const row = x.at(0, c).row(h);
        if (x.s.w == 1) run(row, s.W);
        else
          for (int64_t w = 0; w < s.W; ++w) seen[0] += get(row + w * x.s.w) * F(0);
      }
  }
  return sum_lanes<F>(seen) == 0;
}

}  // namespace ulsam
