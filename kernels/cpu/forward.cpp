// Forward: z = b + sum over c of v act_u(scale max over W(p) of x + shift), A = softmax(act_z(z)), y = (1 + A) x.
//
// A thread takes one image and subspace (a map): logits, softmax, y; x is read the second time from its cache. Few
// large maps are cut into strips of rows that threads share: all logits, all softmaxes, then y. Between BatchNorms that
// use the statistics of the batch, the logits are one call and the rest, A = softmax(act_z(gain z + offset)), another.
#include "operators.h"
#include "maps.h"

namespace ulsam {
namespace {

template <class F, class T, class Y>
struct Forward {
  Shape s;
  View<const T> x;
  View<Y> y;
  const Channels<F>* channels;    // null: z is given
  std::vector<Affine<F>> affine;  // [g]; empty: z is all that is wanted
  F *z, *attention, *lse;         // [N, g, P], [N, g, P] or null, [N, g] or null
  const F* variances = nullptr;   // of the channels of all x, where they are known: no NaN and no infinity hides there

  View<const T> from(int64_t i) const { return x.at(i / s.g, i % s.g * s.G()); }
  View<Y> to(int64_t i) const { return y.at(i / s.g, i % s.g * s.G()); }

  void logits_of(int64_t i, int64_t r0, int64_t r1, Scratch<F>& scratch) const {
    logits<F, T>(z + i * s.P(), from(i), bounds_of(x, s), s, i % s.g, *channels, r0, r1, scratch);
  }

  // a [padded(P)]
  void softmax_of(int64_t i, F* a) const {
    const F l = softmax(a, z + i * s.P(), s.P(), affine[i % s.g]);
    if (lse) lse[i] = l;
    if (attention) std::copy(a, a + s.P(), attention + i * s.P());
    drop_tiny(a, s.P());
  }

  // Logits alone leave no y in which to look.
  void check(int64_t i) const {
    const int64_t c0 = i % s.g * s.G();
    auto finite = [](F var) { return std::isfinite(var); };
    if (variances && std::all_of(variances + c0, variances + c0 + s.G(), finite)) return;
    if (!all_finite<F, T>(from(i), s)) exact_logits<F, T>(z + i * s.P(), from(i), s, i % s.g, *channels);
  }

  void exactly(int64_t i, F* a) const {
    if (channels) exact_logits<F, T>(z + i * s.P(), from(i), s, i % s.g, *channels);
    softmax_of(i, a);
    exact_reweight<F, T, Y>(to(i), from(i), a, s);
  }

  void whole_maps() const {
    const Cut rows = strips<F>(s);
    const int64_t room = std::max(channels ? logits_scratch<F>(s) : 0, map_room<F>(s));
    parallel<F>(s.N * s.g, s.G() * s.P(), room, [&](int64_t i, Scratch<F>& scratch) {
      if (channels)
        for (int64_t j = 0; j < rows.parts; ++j, scratch.reset()) logits_of(i, rows.begin(j), rows.end(j), scratch);
      if (affine.empty()) return check(i);
      F* const a = scratch.take(map_room<F>(s));
      softmax_of(i, a);
      if (!reweight<F, T, Y>(to(i), from(i), a, s, 0, s.H)) exactly(i, a);
    });
  }

  void strips_of_maps() const {
    const Cut rows = strips<F>(s);
    const int64_t maps = s.N * s.g, room = map_room<F>(s);
    const int64_t work = s.G() * s.W * rows.size;
    Scratch<F> scratch(maps * room);
    F* const a = scratch.take(maps * room);
    const Cut passed = passed_rows<F, T>(x.s, s);
    std::vector<char> finite(maps * passed.parts);
    if (channels)
      parallel<F>(maps * rows.parts, work, logits_scratch<F>(s), [&](int64_t j, Scratch<F>& scratch) {
        const auto [i, r] = piece_of(j, s, rows.parts);
        logits_of(i, rows.begin(r), rows.end(r), scratch);
      });
    if (affine.empty()) return parallel(maps, s.G() * s.P(), [&](int64_t i) { check(i); });
    parallel(maps, s.P(), [&](int64_t i) { softmax_of(i, a + i * room); });
    parallel(maps * passed.parts, s.G() * s.W * passed.size, [&](int64_t j) {
      const auto [i, r] = piece_of(j, s, passed.parts);
      finite[i * passed.parts + r] =
          reweight<F, T, Y>(to(i), from(i), a + i * room, s, passed.begin(r), passed.end(r));
    });
    for (int64_t i = 0; i < maps; ++i) {
      const char* const of_map = finite.data() + i * passed.parts;
      if (std::find(of_map, of_map + passed.parts, 0) != of_map + passed.parts) exactly(i, a + i * room);
    }
  }

  Forward of_images(int64_t from, int64_t count) const {
    Forward part = *this;
    const int64_t maps = from * s.g, numbers = maps * s.P();
    part.s.N = count;
    part.x = x.at(from, 0), part.z += numbers;
    if (y.p) part.y = y.at(from, 0);
    if (attention) part.attention += numbers;
    if (lse) part.lse += maps;
    return part;
  }

  void run() const {
    // either way gives the same numbers
    const bool sharing = share_lines<F, T>(x.s, s) || leaves_idle(s.N * s.g);
    if (!cut_into_strips<F, T>(x.s, s) || !sharing) return whole_maps();
    each_images(s, [&](int64_t from, int64_t count) { of_images(from, count).strips_of_maps(); });
  }
};

// y has the type of x or of the computation.
template <class F, class T>
void run(const Shape& s, const Tensor& x, const Maybe& y, const Channels<F>* channels, std::vector<Affine<F>> affine,
         const Tensor& z, const Maybe& attention, const Maybe& lse, const F* variances = nullptr) {
  if (s.N * s.C * s.P() == 0) return;
  auto with = [&](auto type) {
    using Y = decltype(type);
    const Forward<F, T, Y> call{s, view<T>(x), y ? out<Y>(*y) : View<Y>{}, channels, std::move(affine), numbers<F>(z),
                                numbers<F>(attention), numbers<F>(lse), variances};
    call.run();
  };
  if (!y || y->scalar_type() == type_of<T>()) with(T());
  else if constexpr (!std::is_same<T, F>::value) with(F());
  else STD_TORCH_CHECK(false, "y of another type");
}

Tensor result(const Tensor& x, bool wide) { return like(x, wide ? map_type(x) : x.scalar_type()); }

// A convolution's weight and bias, 1 and 0 where they are empty, with a norm of fixed statistics after it:
// gain = gamma / sqrt(var + eps), then weight gain and beta + gain (bias - mean).
template <class F>
void fold(std::vector<F>& weight, std::vector<F>& bias, const Maybe& gamma, const Maybe& beta, const Maybe& mean,
          const Maybe& var, double eps, int64_t count) {
  const std::vector<F> gammas = list<F>(gamma, count), betas = list<F>(beta, count), means = list<F>(mean, count),
                       vars = list<F>(var, count);
  weight.resize(count, F(1)), bias.resize(count, F(0));
  for (int64_t i = 0; i < count; ++i) {
    const F gain = gammas[i] / std::sqrt(vars[i] + F(eps));
    weight[i] *= gain, bias[i] = betas[i] + gain * (bias[i] - means[i]);
  }
}

}  // namespace

// y [N, C, H, W] in x's type or, where `wide`, in that of the computation; A and z [N, g, H, W]; lse [N, g].
std::tuple<Tensor, Maybe, Tensor, Maybe> forward(Tensor x, Tensor scale, Maybe shift, Tensor v, Maybe b,
                                                 int64_t num_splits, bool relu_u, bool relu_z, bool wide,
                                                 bool need_attention, bool need_lse) {
  const Shape s = shape_of(x, num_splits);
  const Tensor y = result(x, wide), z = map_of(x, s);
  const Maybe attention = need_attention ? Maybe(map_of(x, s)) : Maybe();
  const Maybe lse = need_lse ? Maybe(dense({s.N, s.g}, map_type(x))) : Maybe();
  with_type(x, [&](auto type) {
    using F = Computed<decltype(type)>;
    const Channels<F> channels(s, list<F>(scale, s.C), list<F>(shift, s.C), list<F>(v, s.C), list<F>(b, s.g), relu_u);
    run<F, decltype(type)>(s, x, y, &channels, affine_of<F>({}, s.g, relu_z), z, attention, lse);
  });
  return {y, attention, z, lse};
}

// Between BatchNorms with fixed statistics, which are folded here: parameters of one each cost less than operators of
// PyTorch's. Without dw x itself is pooled, and without gamma1 dw and dw_bias are scale and shift. y and A as above.
std::tuple<Tensor, Maybe> folded_forward(Tensor x, Maybe dw, Maybe dw_bias, Maybe gamma1, Maybe beta1, Maybe mean1,
                                         Maybe var1, double eps1, Tensor pw, Maybe pw_bias, Tensor gamma2, Tensor beta2,
                                         Tensor mean2, Tensor var2, double eps2, int64_t num_splits, bool relu_u,
                                         bool relu_z, bool wide, bool need_attention) {
  const Shape s = shape_of(x, num_splits);
  const Tensor y = result(x, wide), z = map_of(x, s);
  const Maybe attention = need_attention ? Maybe(map_of(x, s)) : Maybe();
  with_type(x, [&](auto type) {
    using F = Computed<decltype(type)>;
    std::vector<F> scale = list<F>(dw, s.C), shift = list<F>(dw_bias, s.C), gain, offset = list<F>(pw_bias, s.g);
    if (!dw) scale.assign(s.C, F(1)), shift.clear();
    else if (gamma1) fold(scale, shift, gamma1, beta1, mean1, var1, eps1, s.C);
    fold(gain, offset, gamma2, beta2, mean2, var2, eps2, s.g);
    const Channels<F> channels(s, std::move(scale), std::move(shift), list<F>(pw, s.C), {}, relu_u && dw);
    std::vector<Affine<F>> affine(s.g);
    for (int64_t k = 0; k < s.g; ++k) affine[k] = {gain[k], offset[k], relu_z};
    run<F, decltype(type)>(s, x, y, &channels, std::move(affine), z, attention, {});
  });
  return {y, attention};
}

// Between BatchNorms that use the statistics of the batch, in two steps, for a norm sees z of all images. In each,
// parts [3, K] are the `moments` of what the norm sees, over all processes; without them they are taken of this x or z.
//
// The logits: first [5, C], with rows as `norm_fold` writes them, and z. Without gamma1 there is no norm, first is
// empty, and (dw, beta1) are scale and shift.
std::tuple<Tensor, Tensor> norm_logits(Tensor x, Maybe parts, Tensor dw, Maybe gamma1, Maybe beta1, double eps1,
                                       Maybe running_mean, Maybe running_var, Maybe bias, double momentum, Tensor pw,
                                       int64_t num_splits, bool relu_u) {
  const Shape s = shape_of(x, num_splits);
  const ScalarType type = map_type(x);
  const Tensor first = gamma1 ? dense({5, s.C}, type) : dense({0}, type), z = map_of(x, s);
  Maybe shift = beta1;
  if (gamma1) {
    shift = dense({s.C}, type);
    norm_fold(parts ? *parts : moments(x), dw, *gamma1, beta1, eps1, first, shift, running_mean, running_var, bias,
              momentum);
  }
  with_type(x, [&](auto type) {
    using F = Computed<decltype(type)>;
    const F* const folded = numbers<F>(first);
    const Channels<F> channels(s, gamma1 ? std::vector<F>(folded, folded + s.C) : list<F>(dw, s.C),
                               list<F>(shift, s.C), list<F>(pw, s.C), {}, relu_u);
    run<F, decltype(type)>(s, x, {}, &channels, {}, z, {}, {}, gamma1 ? folded + 3 * s.C : nullptr);
  });
  return {first, z};
}

// And the rest: y and A as above, lse [N, g], and second [6, g]: rows gain, offset, mean, rstd, var, count. Without
// gamma2 there is no norm, and beta2 is b.
std::tuple<Tensor, Maybe, Tensor, Tensor> norm_apply(Tensor x, Tensor z, Maybe parts, Maybe gamma2, Maybe beta2,
                                                     double eps2, Maybe running_mean, Maybe running_var, Maybe bias,
                                                     double momentum, bool relu_z, bool wide, bool need_attention) {
  const Shape s = shape_of(x, z.size(1));
  const Tensor y = result(x, wide), lse = dense({s.N, s.g}, map_type(x)), second = dense({6, s.g}, map_type(x));
  const Maybe attention = need_attention ? Maybe(map_of(x, s)) : Maybe();
  if (gamma2)
    norm_fold(parts ? *parts : moments(z), {}, *gamma2, beta2, eps2, second, {}, running_mean, running_var, bias,
              momentum);
  with_type(x, [&](auto type) {
    using F = Computed<decltype(type)>;
    if (!gamma2) {
      const std::vector<F> b = list<F>(beta2, s.g);
      F* const rows = numbers<F>(second);
      for (int64_t i = 0; i < 6 * s.g; ++i) rows[i] = i < s.g || i / s.g == 3;
      std::copy(b.begin(), b.end(), rows + s.g);
    }
    run<F, decltype(type)>(s, x, y, nullptr, affine_of<F>(second, s.g, relu_z), z, attention, lse);
  });
  return {y, attention, lse, second};
}

// Both: y, A, z, lse, first, second.
std::tuple<Tensor, Maybe, Tensor, Tensor, Tensor, Tensor> norm_forward(
    Tensor x, Tensor dw, Maybe gamma1, Maybe beta1, double eps1, Maybe running_mean1, Maybe running_var1, Maybe bias1,
    double momentum1, Tensor pw, Maybe gamma2, Maybe beta2, double eps2, Maybe running_mean2, Maybe running_var2,
    Maybe bias2, double momentum2, int64_t num_splits, bool relu_u, bool relu_z, bool wide, bool need_attention) {
  const auto [first, z] = norm_logits(x, {}, dw, gamma1, beta1, eps1, running_mean1, running_var1, bias1, momentum1, pw,
                                      num_splits, relu_u);
  const auto [y, attention, lse, second] = norm_apply(x, z, {}, gamma2, beta2, eps2, running_mean2, running_var2, bias2,
                                                      momentum2, relu_z, wide, need_attention);
  return {y, attention, z, lse, first, second};
}

}  // namespace ulsam
