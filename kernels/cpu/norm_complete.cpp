// The last pass of the backward between BatchNorms with the statistics of the batch, once the sums over it are known:
//
//     dx[c,q] += D[c,q] (1 + A[q]) - constant[c] - slope[c] (x[c,q] - mean[c])
//
// with constant = scale S1 / M and slope = scale (dw r1)^2 S2 / M (see norm_backend.py). dx holds scale v s.
#include "operators.h"
#include "gradient.h"

namespace ulsam {
namespace {

// A run of memory: of one channel, A along it and the rest the same all along, or of one pixel, the other way round.
template <class F, class T, class DT, bool PIXEL>
void complete_run(T* dx, const DT* D, const T* x, const F* a, const F* constant, const F* slope, const F* mean,
                  int64_t count) {
  constexpr int L = LANES<F>;
  using V = Vec<F>;
  for (int64_t i = 0; i < count; i += L) {
    const int lanes = int(std::min<int64_t>(L, count - i));
    auto of = [&](const F* p, bool along) { return along ? load_some<F>(p + i, lanes) : broadcast(*p); };
    const V centred = load_some<F>(x + i, lanes) - of(mean, PIXEL);
    V out = load_some<F>(dx + i, lanes) - of(constant, PIXEL) - of(slope, PIXEL) * centred;
    if (D) {
      const V d = load_some<F>(D + i, lanes);
      out += d + of(a, !PIXEL) * d;
    }
    store_some<F>(dx + i, out, lanes);
  }
}

}  // namespace

// Shapes: dx as x; z [N, g, P]; second [6, g]; first [5, C]; S [2, C]: S1 and S2, of all processes.
void norm_complete(Maybe dy, Tensor x, Tensor z, Tensor second, Tensor first, Tensor dw, Tensor S, Tensor dx,
                   bool relu_z) {
  const Shape s = shape_of(x, z.size(1));
  with_type(x, [&](auto type) {
    using T = decltype(type);
    using F = Computed<T>;
    const F *const z_ = numbers<F>(z), *const norm = numbers<F>(second), *const f = numbers<F>(first);
    const F *const sums = numbers<F>(S), *const mean = f + s.C, *const rstd = f + 2 * s.C, *const count = f + 4 * s.C;
    const std::vector<F> weight = list<F>(dw, s.C);
    std::vector<F> constant(s.C), slope(s.C);
    for (int64_t c = 0; c < s.C; ++c) {
      const F ratio = weight[c] * rstd[c];
      constant[c] = f[c] * sums[c] / count[c], slope[c] = f[c] * ratio * ratio * sums[s.C + c] / count[c];
    }
    const View<const T> x_ = view<T>(x);
    const View<T> dx_ = out<T>(dx);
    with_gradient<F, T>(dy, [&](auto D) {
      using DT = std::remove_const_t<std::remove_pointer_t<decltype(D.p)>>;
      const Order order = order_of<F>(x_.s, s);
      const bool runs = order != Order::NEITHER && alike<F>(dx_.s, x_.s, s) && (!D.p || alike<F>(D.s, x_.s, s));
      const int64_t G = s.G(), P = s.P(), room = map_room<F>(s);
      const bool joined = runs && x_.s.rows_joined(s) && dx_.s.rows_joined(s) && (!D.p || D.s.rows_joined(s));
      auto attention_of = [&](int64_t i, F* a) {
        const int64_t k = i % s.g;
        softmax(a, z_ + i * P, P, Affine<F>{norm[k], norm[s.g + k], relu_z});
        drop_tiny(a, P);
      };
      auto rows_of = [&](int64_t i, const F* a, int64_t r0, int64_t r1) {
        const int64_t n = i / s.g, c0 = i % s.g * G;
        auto run = [&](auto pixel, int64_t c, int64_t r, int64_t w, int64_t count) {
          const int64_t at = c0 + c;
          complete_run<F, T, DT, pixel>(dx_.at(n, at).row(r) + w * dx_.s.w,
                                        D.p ? D.at(n, at).row(r) + w * D.s.w : nullptr,
                                        x_.at(n, at).row(r) + w * x_.s.w, a + r * s.W + w, &constant[at],
                                        &slope[at], mean + at, count);
        };
        const std::integral_constant<bool, false> channel{};
        const std::integral_constant<bool, true> pixel{};
        if (runs && order == Order::PIXELS) {
          for (int64_t p = r0 * s.W; p < r1 * s.W; ++p) run(pixel, 0, p / s.W, p % s.W, G);
        } else {
          for (int64_t c = 0; c < G; ++c) {
            if (joined) run(channel, c, r0, 0, (r1 - r0) * s.W);
            else if (runs)
              for (int64_t r = r0; r < r1; ++r) run(channel, c, r, 0, s.W);
            else
              for (int64_t p = r0 * s.W; p < r1 * s.W; ++p) run(channel, c, p / s.W, p % s.W, 1);
          }
        }
      };
      if (!cut_into_strips<F, T>(x_.s, s))
        return parallel<F>(s.N * s.g, G * P, room, [&](int64_t i, Scratch<F>& scratch) {
          F* const a = scratch.take(room);
          attention_of(i, a);
          rows_of(i, a, 0, s.H);
        });
      const Cut rows = passed_rows<F, T>(x_.s, s);
      each_images(s, [&](int64_t from, int64_t count) {
        const int64_t before = from * s.g, maps = count * s.g;
        Scratch<F> scratch(maps * room);
        F* const a = scratch.take(maps * room);
        parallel(maps, P, [&](int64_t i) { attention_of(before + i, a + i * room); });
        parallel(maps * rows.parts, G * s.W * rows.size, [&](int64_t item) {
          const auto [i, r] = piece_of(item, s, rows.parts);
          rows_of(before + i, a + i * room, rows.begin(r), rows.end(r));
        });
      });
    });
  });
}

}  // namespace ulsam
