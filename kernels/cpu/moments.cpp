// Count, mean and M2 (the sum of squared deviations from the mean) of every channel of x [N, C, H, W].
//
// A piece of a channel that fits L1 is read twice, for its mean and for its deviations from it, so nothing cancels; the
// pieces of a channel are combined in order, M2 += M2' + (mean' - mean)^2 n n' / (n + n'). A thread takes channels.
#include <cmath>

#include "operators.h"

namespace ulsam {
namespace {

constexpr int64_t PIECE = 2048;  // numbers

// What has been seen of one channel (F), or in the lanes of several (Vec<F>).
template <class F, class V>
struct Moments {
  F count = 0;
  V mean{}, m2{};

  void add(F n, V mean_n, V m2_n) {
    const F total = count + n;
    const V delta = mean_n - mean;
    mean += delta * (n / total);
    m2 += m2_n + delta * delta * (count * (n / total));
    count = total;
  }
};

// `runs` runs of n numbers in memory, `step` apart.
template <class F, class T>
void add_runs(Moments<F, F>& moments, const T* x, int64_t step, int64_t runs, int64_t n) {
  constexpr int L = LANES<F>;
  using V = Vec<F>;
  auto sum_of = [&](const auto& term) {
    V sum{}, sum2{};
    const T* p = x;
    for (int64_t r = 0; r < runs; ++r, p += step) {
      int64_t i = 0;
      for (; i + 2 * L <= n; i += 2 * L) sum += term(load<F>(p + i)), sum2 += term(load<F>(p + i + L));
      if (i + L <= n) sum += term(load<F>(p + i)), i += L;
      const int rest = int(n - i);
      if (rest) sum2 += first_lanes<F>(term(load_some<F>(p + i, rest)), rest, V{});
    }
    return sum_lanes<F>(sum + sum2);
  };
  const F mean = sum_of([](V v) { return v; }) / F(n * runs);
  const V mean_v = broadcast(mean);
  const F m2 = sum_of([&](V v) { return (v - mean_v) * (v - mean_v); });
  moments.add(F(n * runs), mean, m2);
}

template <class F, class T>
Moments<F, F> of_channel(View<const T> x, const Shape& s) {
  Moments<F, F> moments;
  if (x.s.w == 1 || s.W == 1) {
    // a run is a map where its rows are joined, else a row; a piece has several, or is a part of one
    const bool joined = x.s.rows_joined(s);
    const int64_t length = joined ? s.P() : s.W, step = joined ? x.s.n : x.s.h;
    const Cut runs = cut(joined ? s.N : s.H, std::max<int64_t>(1, PIECE / length)), parts = cut(length, PIECE);
    for (int64_t n = 0; n < (joined ? 1 : s.N); ++n)
      for (int64_t j = 0; j < runs.parts; ++j)
        for (int64_t i = 0; i < parts.parts; ++i)
          add_runs<F, T>(moments, x.at(n, 0).p + runs.begin(j) * step + parts.begin(i), step,
                         runs.end(j) - runs.begin(j), parts.end(i) - parts.begin(i));
    return moments;
  }
  std::vector<F> gathered(s.W);
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t r = 0; r < s.H; ++r) {
      for (int64_t w = 0; w < s.W; ++w) gathered[w] = get(x.at(n, 0).row(r) + w * x.s.w);
      add_runs<F, F>(moments, gathered.data(), 0, 1, s.W);
    }
  return moments;
}

// K vectors of channels, in the lanes.
template <class F, int K, class T>
void of_channels(Moments<F, Vec<F>>* moments, View<const T> x, const Shape& s) {
  using V = Vec<F>;
  constexpr int L = LANES<F>;
  const bool joined = x.s.h == s.W * x.s.w || s.H == 1;
  const int64_t runs = joined ? 1 : s.H;
  const Cut pieces = cut(joined ? s.P() : s.W, PIECE / (K * L));
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t r = 0; r < runs; ++r)
      for (int64_t i = 0; i < pieces.parts; ++i) {
        const int64_t begin = pieces.begin(i), count = pieces.end(i) - begin;
        const T* const row = x.at(n, 0).row(r) + begin * x.s.w;
        V sum[K] = {}, m2[K] = {}, mean[K];
        for (int64_t w = 0; w < count; ++w)
          for (int k = 0; k < K; ++k) sum[k] += load<F>(row + w * x.s.w + k * L);
        for (int k = 0; k < K; ++k) mean[k] = sum[k] * (F(1) / F(count));
        for (int64_t w = 0; w < count; ++w)
          for (int k = 0; k < K; ++k) {
            const V d = load<F>(row + w * x.s.w + k * L) - mean[k];
            m2[k] += d * d;
          }
        for (int k = 0; k < K; ++k) moments[k].add(F(count), mean[k], m2[k]);
      }
}

}  // namespace

// Of every channel, over N, H and W: [3, C], rows count, mean, M2.
Tensor moments(Tensor x) {
  const Shape s = shape_of(x, 1);
  const Tensor parts = dense({3, s.C}, map_type(x));
  with_type(x, [&](auto type) {
    using T = decltype(type);
    using F = Computed<T>;
    F* const to = numbers<F>(parts);
    std::fill(to, to + 3 * s.C, F(0));
    if (s.N * s.P() == 0) return;
    const View<const T> v = view<T>(x);
    constexpr int L = LANES<F>;
    const bool pixels = order_of<F>(v.s, s) == Order::PIXELS && s.C >= L;
    constexpr int MANY = 128 / sizeof(F) / L;  // two cache lines
    auto keep = [&](int64_t c, F count, F mean, F m2) { to[c] = count, to[s.C + c] = mean, to[2 * s.C + c] = m2; };
    const Cut blocks = cut(s.C, pixels ? MANY * L : 1 + 1024 / s.P(), pixels ? L : 1);
    parallel(blocks.parts, blocks.size * s.N * s.P(), [&](int64_t b) {
      const int64_t end = blocks.end(b);
      for (int64_t c = blocks.begin(b); c < end;) {
        if (pixels) {
          Moments<F, Vec<F>> m[MANY];
          const int k = end - c >= MANY * L ? MANY : 1;
          const int64_t first = std::min(c, s.C - k * L), before = c - first;
          k == MANY ? of_channels<F, MANY, T>(m, v.at(0, first), s) : of_channels<F, 1, T>(m, v.at(0, first), s);
          for (int64_t j = before; j < k * L && first + j < end; ++j)
            keep(first + j, m[j / L].count, m[j / L].mean[j % L], m[j / L].m2[j % L]);
          c = first + k * L;
        } else {
          const auto m = of_channel<F, T>(v.at(0, c), s);
          keep(c++, m.count, m.mean, m.m2);
        }
      }
    });
  });
  return parts;
}

// A norm as an affine map. parts [3, C]: count, mean and M2 of what it sees but for the factor, which stands for 1:
//
//     rstd = 1 / sqrt(factor^2 var + eps),  gain = gamma factor rstd,  offset = beta - gain mean
//
// rows [5, C]: gain, mean, rstd, var, count, and offset [C] apart; or without it [6, C], offset being the second row.
// Running statistics, if given, go `momentum` of the way to those of the norm's input: factor mean + bias, and
// factor^2 var unbiased.
void norm_fold(Tensor parts, Maybe factor, Tensor gamma, Maybe beta, double eps, Tensor rows, Maybe offset,
               Maybe running_mean, Maybe running_var, Maybe bias, double momentum) {
  const int64_t C = parts.size(1);
  with_type(parts, [&](auto type) {
    using F = Computed<decltype(type)>;
    const F* const p = numbers<F>(parts);
    const std::vector<F> f = list<F>(factor, C), g = list<F>(gamma, C), b = list<F>(beta, C), before = list<F>(bias, C);
    std::vector<F> running_m = list<F>(running_mean, C), running_v = list<F>(running_var, C);
    F *const to = numbers<F>(rows), *const rest = to + (offset ? C : 2 * C);
    F* const offsets = offset ? numbers<F>(*offset) : to + C;
    for (int64_t c = 0; c < C; ++c) {
      const F count = p[c], mean = p[C + c], var = p[2 * C + c] / count, factor_c = f.empty() ? F(1) : f[c];
      const F rstd = 1 / std::sqrt(factor_c * factor_c * var + F(eps)), gain = g[c] * factor_c * rstd;
      to[c] = gain, rest[c] = mean, rest[C + c] = rstd, rest[2 * C + c] = var, rest[3 * C + c] = count;
      offsets[c] = (b.empty() ? F(0) : b[c]) - gain * mean;
      if (running_m.empty()) continue;
      const F seen = factor_c * mean + (before.empty() ? F(0) : before[c]);
      const F unbiased = factor_c * factor_c * (var * (count / (count - 1)));
      // from the nearer end, so that 0 and 1 give the ends themselves
      auto blend = [&](F from, F until) {
        const F m = F(momentum), step = until - from;
        return m < F(0.5) ? from + m * step : until - step * (1 - m);
      };
      running_m[c] = blend(running_m[c], seen), running_v[c] = blend(running_v[c], unbiased);
    }
    write_list<F>(running_mean, running_m.data(), C);
    write_list<F>(running_var, running_v.data(), C);
  });
}

}  // namespace ulsam
