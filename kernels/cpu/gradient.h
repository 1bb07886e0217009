// Backward of all maps: dl of each, then its channels, a vector of them at a time.
//
// Sums over images: images are cut into blocks by shape, a block adds up its images in order, and the blocks are added
// in order; so a result depends on nothing but the shape. A thread takes a block of one subspace; of few large maps,
// first strips of rows for dA, then blocks of channels.
#pragma once

#include "gradient_maps.h"
#include "tensors.h"
#include "winners.h"

namespace ulsam {

template <class F, class T, class DT>
struct Backward {
  Shape s;
  View<const T> x;
  View<const DT> D;  // null: y had no gradient
  View<T> dx;
  const Channels<F>* channels;
  const F *mean, *centred_shift;  // [C]: sums are of s (x - mean); shift + scale mean
  std::vector<Affine<F>> affine;  // [g]
  const F *z, *d_attention;       // [N, g, P], the second may be null
  const F* dz;                    // [N, g, P]: given dl; null: it is computed
  const F* means;                 // [2, g]: <dl>, <dl zhat> of a norm that given dl goes through first; null: none
  const F* second;                // [6, g]: what that norm is, gain in row 0, mean in row 2, rstd in row 3
  F* dl;                          // [N, g, P]: dl is written here and is all that is wanted; null: it is used
  F* sums;                        // [3, C]: sum s (x - mean), sum s, sum dl m
  F* dl_sums;                     // [N, g], or with `second` [2, N, g]: sum dl, sum dl zhat
  int64_t maps = s.N * s.g;       // of the whole call

  View<const T> x_of(int64_t i) const { return x.at(i / s.g, i % s.g * s.G()); }
  View<const DT> D_of(int64_t i) const { return D.p ? D.at(i / s.g, i % s.g * s.G()) : D; }
  View<T> dx_of(int64_t i) const { return dx.at(i / s.g, i % s.g * s.G()); }

  // Channels [c0, c1) of map i in strips [j0, j1), a vector of them at a time; partial [3, C] is added to. EXACT: all
  // strips are there, and a channel that is not finite is done again.
  template <bool EXACT>
  void channels_of(int64_t i, int64_t c0, int64_t c1, const F* a, const F* dl, F* partial, const Strip<F>& strip,
                   int64_t j0, int64_t j1) const {
    constexpr int L = LANES<F>;
    const int64_t base = i % s.g * s.G();
    const View<const T> xs = x_of(i);
    const View<const DT> Ds = D_of(i);
    const View<T> dxs = dx_of(i);
    // 0, or NaN where a dl of these strips is not finite: dl m is then NaN though m be 0
    Vec<F> finite{};
    const int64_t first = strip.rows.begin(j0) * s.W / L * L;  // what is padded ends with a whole vector
    for (int64_t p = first; p < strip.rows.end(j1 - 1) * s.W; p += L) finite += load(dl + p) * F(0);
    const F trace = sum_lanes<F>(finite);
    for (int64_t at = c0; at < c1; at += L) {
      const int64_t from = std::max(c0, std::min(at, c1 - L));  // the last vector may overlap the one before it
      const int count = int(std::min<int64_t>(L, c1 - from));
      auto of = [&](const F* list) {
        Vec<F> v;
        for (int j = 0; j < L; ++j) v[j] = list[base + from + std::min(j, count - 1)];
        return v;
      };
      Factors<F> f{of(channels->kappa.data()), of(channels->size.data()), of(channels->shift.data()),
                   mean ? of(mean) : Vec<F>{}, of(channels->scale.data()) * of(channels->v.data())};
      const Lanes<const T> x_c{xs.at(0, from), count, order_of<F>(x.s, s)};
      const Lanes<const DT> D_c{Ds.p ? Ds.at(0, from) : Ds, count, order_of<F>(D.s, s)};
      const Lanes<T> dx_c{dxs.at(0, from), count, order_of<F>(dx.s, s)};
      channels->relu ? route<F, true, T, DT>(f, dx_c, D_c, x_c, a, dl, s, strip, j0, j1)
                     : route<F, false, T, DT>(f, dx_c, D_c, x_c, a, dl, s, strip, j0, j1);
      for (int64_t j = 0; j < count; ++j) {
        const bool again = from + j < at;  // dx of an overlap is overwritten, and so is what was exact of it
        if (again && (!EXACT || std::isfinite(f.sx[j]))) continue;
        const int64_t c = from + j, one = base + c;
        ChannelSums<F> sum{f.sx[j], f.ss[j], 0};
        sum.m = channels->scale[one] * sum.sx + centred_shift[one] * sum.ss + trace;
        if (EXACT && !std::isfinite(sum.sx)) sum = exactly(i, c, a, dl);
        if (!again) partial[one] += sum.sx, partial[s.C + one] += sum.ss, partial[2 * s.C + one] += sum.m;
      }
    }
  }

  // Channel c of map i.
  ChannelSums<F> exactly(int64_t i, int64_t c, const F* a, const F* dl) const {
    const int64_t one = i % s.g * s.G() + c;
    const View<const DT> Ds = D_of(i);
    return exact_route<F, T, DT>(dx_of(i).at(0, c), Ds.p ? Ds.at(0, c) : Ds, x_of(i).at(0, c), a, dl, s,
                                 channels->scale[one], channels->shift[one], channels->kappa[one],
                                 mean ? mean[one] : F(0), channels->scale[one] * channels->v[one], channels->relu);
  }

  // da [padded(P)] in rows [r0, r1).
  void start(int64_t i, F* da, int64_t r0, int64_t r1) const {
    if (d_attention) std::copy(d_attention + i * s.P() + r0 * s.W, d_attention + i * s.P() + r1 * s.W, da + r0 * s.W);
    else std::fill(da + r0 * s.W, da + r1 * s.W, F(0));
    if (D.p) add_products<F, T, DT>(da, D_of(i), x_of(i), s, r0, r1);
  }

  // From da: A, and dl in its place.
  void finish(int64_t i, F* a, F* da) const {
    const int64_t P = s.P();
    if (!dz || D.p) softmax(a, z + i * P, P, affine[i % s.g]), drop_tiny(a, P);
    if (dz) {
      std::copy(dz + i * P, dz + (i + 1) * P, da);
      std::fill(da + P, da + padded<F>(P), F(0));
      if (means) {
        const int64_t k = i % s.g;
        const F gain = second[k], mean = second[2 * s.g + k], rstd = second[3 * s.g + k];
        for (int64_t p = 0; p < P; ++p)
          da[p] = gain * (da[p] - means[k] - (z[i * P + p] - mean) * rstd * means[s.g + k]);
      }
    } else {
      const F sum = logit_gradient(da, a, z + i * P, P, affine[i % s.g]);
      dl_sums[i] = sum;
      if (second) {
        const F mean = second[2 * s.g + i % s.g], rstd = second[3 * s.g + i % s.g];
        Vec<F> with_zhat{};
        for (int64_t p = 0; p < padded<F>(P); p += LANES<F>) {
          const int64_t count = std::min<int64_t>(P - p, LANES<F>);
          const Vec<F> z_p = load_some<F>(z + i * P + p, int(count));
          with_zhat += load(da + p) * ((z_p - broadcast(mean)) * broadcast(rstd));
        }
        dl_sums[maps + i] = sum_lanes<F>(with_zhat);
      }
    }
    if (dl) std::copy(da, da + P, dl + i * P);
  }

  void add_up(const std::vector<F>& partial, int64_t blocks) const {
    std::copy(partial.begin(), partial.begin() + 3 * s.C, sums);
    for (int64_t b = 1; b < blocks; ++b)
      for (int64_t i = 0; i < 3 * s.C; ++i) sums[i] += partial[b * 3 * s.C + i];
  }

  void whole_maps() const {
    const Cut images = cut(s.N, std::max<int64_t>(1, s.N * s.g / 64));
    std::vector<F> partial(images.parts * 3 * s.C, F(0));
    const int64_t work = images.size * s.G() * s.P(), room = 2 * map_room<F>(s) + (dl ? 0 : Strip<F>::room(s));
    parallel<F>(images.parts * s.g, work, room, [&](int64_t item, Scratch<F>& scratch) {
      const int64_t b = item / s.g, k = item % s.g;
      F *const a = scratch.take(map_room<F>(s)), *const da = scratch.take(map_room<F>(s));
      const Strip<F> strip = dl ? Strip<F>() : Strip<F>(s, scratch);
      for (int64_t n = images.begin(b); n < images.end(b); ++n) {
        const int64_t i = n * s.g + k;
        if (!dz) start(i, da, 0, s.H);
        finish(i, a, da);
        if (!dl) channels_of<true>(i, 0, s.G(), a, da, &partial[b * 3 * s.C], strip, 0, strip.rows.parts);
      }
    });
    if (!dl) add_up(partial, images.parts);
  }

  void strips_of_maps() const {
    const int64_t maps = s.N * s.g;  // of these images
    Scratch<F> scratch(maps * (2 * map_room<F>(s)));
    F* const a = scratch.take(maps * map_room<F>(s)), *const da = scratch.take(maps * map_room<F>(s));
    const Cut rows = passed_rows<F, T>(x.s, s), routed = Strip<F>::rows_of(s);
    Cut blocks = cut(s.G(), std::max<int64_t>(1, LARGE / (routed.size * s.W)), LANES<F>);
    if (blocks.parts > 1 && blocks.end(blocks.parts - 1) - blocks.begin(blocks.parts - 1) < LANES<F>) --blocks.parts;
    // of each image and strip
    std::vector<F> partial(dl ? 0 : s.N * routed.parts * 3 * s.C, F(0));
    auto sums_of = [&](int64_t n, int64_t r) { return &partial[(n * routed.parts + r) * 3 * s.C]; };
    auto a_of = [&](int64_t i) { return a + i * map_room<F>(s); };
    auto da_of = [&](int64_t i) { return da + i * map_room<F>(s); };
    auto route_block = [&](int64_t i, int64_t r, int64_t b, Scratch<F>& own) {
      const int64_t end = b + 1 < blocks.parts ? blocks.end(b) : s.G();
      channels_of<false>(i, blocks.begin(b), end, a_of(i), da_of(i), sums_of(i / s.g, r), Strip<F>(s, own), r, r + 1);
    };
    if (!share_lines<F, T>(x.s, s) && !leaves_idle(maps)) {  // the same numbers in another order
      parallel<F>(maps, s.G() * s.P(), Strip<F>::room(s), [&](int64_t i, Scratch<F>& own) {
        if (!dz) start(i, da_of(i), 0, s.H);
        finish(i, a_of(i), da_of(i));
        for (int64_t r = 0; r < routed.parts && !dl; ++r)
          for (int64_t b = 0; b < blocks.parts; ++b, own.reset()) route_block(i, r, b, own);
      });
    } else {
      if (!dz)
        parallel(maps * rows.parts, s.G() * s.W * rows.size, [&](int64_t item) {
          const auto [i, r] = piece_of(item, s, rows.parts);
          start(i, da_of(i), rows.begin(r), rows.end(r));
        });
      parallel(maps, s.P(), [&](int64_t i) { finish(i, a_of(i), da_of(i)); });
      const int64_t items = dl ? 0 : maps * routed.parts * blocks.parts, work = routed.size * s.W * blocks.size;
      parallel<F>(items, work, Strip<F>::room(s), [&](int64_t item, Scratch<F>& own) {
        const auto [i, r] = piece_of(item / blocks.parts, s, routed.parts);
        route_block(i, r, item % blocks.parts, own);
      });
    }
    if (dl) return;
    for (int64_t n = 0; n < s.N; ++n)
      for (int64_t c = 0; c < s.C; ++c) {
        const int64_t i = n * s.g + c / s.G();
        F* const whole = sums_of(n, 0) + c;
        for (int64_t r = 1; r < routed.parts; ++r)
          for (int64_t row = 0; row < 3 * s.C; row += s.C) whole[row] += sums_of(n, r)[row + c];
        if (std::isfinite(*whole)) continue;
        const ChannelSums<F> sum = exactly(i, c % s.G(), a + i * map_room<F>(s), da + i * map_room<F>(s));
        whole[0] = sum.sx, whole[s.C] = sum.ss, whole[2 * s.C] = sum.m;
      }
    for (int64_t n = 0; n < s.N; ++n)
      for (int64_t j = 0; j < 3 * s.C; ++j) sums[j] += sums_of(n, 0)[j];
  }

  Backward of_images(int64_t from, int64_t count) const {
    Backward part = *this;
    const int64_t maps = from * s.g, numbers = maps * s.P();
    part.s.N = count;
    part.x = x.at(from, 0), part.dx = dx.at(from, 0);
    if (D.p) part.D = D.at(from, 0);
    part.z += numbers, part.dl_sums += maps;
    if (d_attention) part.d_attention += numbers;
    if (dz) part.dz += numbers;
    if (dl) part.dl += numbers;
    return part;
  }

  void run() const {
    if (!cut_into_strips<F, T>(x.s, s)) return whole_maps();
    each_images(s, [&](int64_t from, int64_t count) { of_images(from, count).strips_of_maps(); });
  }
};

// f(D) with D as the type of x or of the computation, or null.
template <class F, class T, class Function>
void with_gradient(const Maybe& dy, Function f) {
  if (!dy) f(View<const T>{nullptr, {}});
  else if (dy->scalar_type() == type_of<T>()) f(view<T>(*dy));
  else if constexpr (!std::is_same<T, F>::value) f(view<F>(*dy));
  else STD_TORCH_CHECK(false, "dy of another type");
}

}  // namespace ulsam
