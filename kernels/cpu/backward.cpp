// Backward, with D = dy and sums over q running over the pixels of one image and subspace:
//
//     dA[p] = sum_c D[c,p] x[c,p] (+ the gradient that arrives at A itself)
//     dl[p] = A[p] (dA[p] - sum_q A[q] dA[q]),  zero where act_z is a ReLU and z[p] <= 0
//     s[c,q] = sum of dl[p] over the windows p whose maximum is at q,  zero where act_u is a ReLU and u[c,q] <= 0
//     dscale[c] = v[c] sum s x;  dshift[c] = v[c] sum s
//     dv[c] = sum dl m = sum s u = scale[c] sum s x + shift[c] sum s
//     db = sum dl;  dx[c,q] = D[c,q] (1 + A[q]) + scale[c] v[c] s[c,q]
//
// A is computed again from z, and the winners of windows from x: nothing else is kept by forward.
#include "operators.h"
#include "gradient.h"

namespace ulsam {

// The gradient of b or beta2 from the sums of dl [g].
template <class F>
std::vector<F> seen_by_softmax(std::vector<F> sums, bool relu_z) {
  if (!relu_z)
    for (F& d : sums) d *= 0;  // without act_z it sees no constant: what the sum leaves is rounding, or NaN
  return sums;
}

// The gradients of x, scale, shift, v and b, in their types; z [N, g, P]. Without act_z that of b is 0.
std::tuple<Tensor, Tensor, Maybe, Tensor, Maybe> backward(Maybe dy, Maybe d_attention, Tensor x, Tensor scale,
                                                          Maybe shift, Tensor v, Maybe b, Tensor z, int64_t num_splits,
                                                          bool relu_u, bool relu_z) {
  const Shape s = shape_of(x, num_splits);
  const Tensor dx = like(x, x.scalar_type()), dscale = gradient_of(scale), dv = gradient_of(v);
  const Maybe dshift = gradient_of(shift), db = gradient_of(b);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    using F = Computed<T>;
    const Channels<F> channels(s, list<F>(scale, s.C), list<F>(shift, s.C), list<F>(v, s.C), {}, relu_u);
    std::vector<F> sums(3 * s.C), dl_sums(s.N * s.g), db_(s.g);
    if (s.N * s.C * s.P() > 0)
      with_gradient<F, T>(dy, [&](auto D) {
        using DT = std::remove_const_t<std::remove_pointer_t<decltype(D.p)>>;
        Backward<F, T, DT>{s, view<T>(x), D, out<T>(dx), &channels, nullptr, channels.shift.data(),
                           affine_of<F>({}, s.g, relu_z), numbers<F>(z), numbers<F>(d_attention),
                           nullptr, nullptr, nullptr, nullptr, sums.data(), dl_sums.data()}
            .run();
      });
    write_list<F>(dv, &sums[2 * s.C], s.C);
    for (int64_t i = 0; i < s.N * s.g; ++i) db_[i % s.g] += dl_sums[i];
    db_ = seen_by_softmax(std::move(db_), relu_z);
    if (!relu_u)  // every dl reaches a u
      for (int64_t c = 0; c < s.C; ++c) sums[s.C + c] = db_[c / s.G()];
    for (int64_t c = 0; c < s.C; ++c) sums[c] *= channels.v[c], sums[s.C + c] *= channels.v[c];
    write_list<F>(dscale, &sums[0], s.C);
    write_list<F>(dshift, &sums[s.C], s.C);
    write_list<F>(db, db_.data(), s.g);
  });
  return {dx, dscale, dshift, dv, db};
}

// Between BatchNorms that use the statistics of the batch, where dl has to be known of all images before it goes on:
// dl [N, g, P], with A = softmax(act_z(gain z + offset)), second [6, g] (rows gain, offset, mean, rstd, ...), and
// totals [2, g]: the sums of dl and of dl zhat, zhat = (z - mean) rstd. These are the gradients of beta2 and gamma2, but
// for that of beta2 without act_z, which is 0.
std::tuple<Tensor, Tensor, Maybe, Maybe> norm_logit_gradient(Maybe dy, Maybe d_attention, Tensor x, Tensor z,
                                                             Tensor second, Maybe gamma2, Maybe beta2, bool relu_z) {
  const Shape s = shape_of(x, z.size(1));
  const Tensor dl = map_of(x, s), totals = dense({2, s.g}, map_type(x));
  const Maybe dgamma2 = gradient_of(gamma2), dbeta2 = gradient_of(beta2);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    using F = Computed<T>;
    std::vector<F> sums(2 * s.N * s.g);
    with_gradient<F, T>(dy, [&](auto D) {
      using DT = std::remove_const_t<std::remove_pointer_t<decltype(D.p)>>;
      Backward<F, T, DT>{s, view<T>(x), D, View<T>{nullptr, strides_of(x)}, nullptr, nullptr, nullptr,
                         affine_of<F>(second, s.g, relu_z), numbers<F>(z), numbers<F>(d_attention), nullptr, nullptr,
                         numbers<F>(second), numbers<F>(dl), nullptr, sums.data()}
          .run();
    });
    F* const to = numbers<F>(totals);
    std::fill(to, to + 2 * s.g, F(0));
    for (int64_t i = 0; i < 2 * s.N * s.g; ++i) to[i / (s.N * s.g) * s.g + i % s.g] += sums[i];
    write_list<F>(dbeta2, seen_by_softmax(std::vector<F>(to, to + s.g), relu_z).data(), s.g);
    write_list<F>(dgamma2, to + s.g, s.g);
  });
  return {dl, totals, dgamma2, dbeta2};
}

// And then, with dz = gain (dl - <dl> - zhat <dl zhat>) in dl's place, or dl itself where totals (of all processes) are
// not given: dx = scale v s, + D (1 + A) where dy is given, the gradients of the parameters, and S [2, C]:
// S1 = v sum s, S2 = v sum s xc. first [5, C]: rows scale, mean, rstd, var, count, with which xc = x - mean and
//
//     dbeta1 = S1,  dgamma1 = S2 dw r1,  ddw = gamma1 S2 eps r1^3,  dpw = sum dz m = scale sum s xc + beta1 sum s
//
// or none, and (dw, beta1) are scale and shift, xc = x and ddw = S2.
std::tuple<Tensor, Tensor, Maybe, Maybe, Tensor, Tensor> norm_route(Maybe dy, Tensor x, Tensor dw, Maybe first,
                                                                    Maybe gamma1, Maybe beta1, Tensor pw, Tensor z,
                                                                    Tensor second, Tensor dl, Maybe totals, double eps1,
                                                                    bool relu_u, bool relu_z) {
  const Shape s = shape_of(x, z.size(1));
  const Tensor dx = like(x, x.scalar_type()), ddw = gradient_of(dw), dpw = gradient_of(pw);
  const Tensor S = dense({2, s.C}, map_type(x));
  const Maybe dgamma1 = gradient_of(gamma1), dbeta1 = gradient_of(beta1);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    using F = Computed<T>;
    const int64_t C = s.C;
    const std::vector<F> weight = list<F>(dw, C), gamma = list<F>(gamma1, C);
    std::vector<F> beta = list<F>(beta1, C), scale = weight, shift = beta, sums(3 * C), means(2 * s.g);
    beta.resize(C);
    const F* const f = numbers<F>(first);
    if (f) {
      scale.assign(f, f + C), shift = beta;
      for (int64_t c = 0; c < C; ++c) shift[c] -= f[c] * f[C + c];
    }
    const Channels<F> channels(s, scale, shift, list<F>(pw, C), {}, relu_u);
    const F *const norm = numbers<F>(second), *const total = numbers<F>(totals);
    if (total)
      for (int64_t k = 0; k < 2 * s.g; ++k) means[k] = total[k] / norm[5 * s.g + k % s.g];
    with_gradient<F, T>(dy, [&](auto D) {
      using DT = std::remove_const_t<std::remove_pointer_t<decltype(D.p)>>;
      Backward<F, T, DT>{s, view<T>(x), D, out<T>(dx), &channels, f ? f + C : nullptr, beta.data(),
                         affine_of<F>(second, s.g, relu_z), numbers<F>(z), nullptr, numbers<F>(dl),
                         total ? means.data() : nullptr, norm, nullptr, sums.data(), nullptr}
          .run();
    });
    write_list<F>(dpw, &sums[2 * C], C);
    F* const to = numbers<F>(S);
    for (int64_t c = 0; c < C; ++c) to[c] = channels.v[c] * sums[C + c], to[C + c] = channels.v[c] * sums[c];
    write_list<F>(dbeta1, to, C);
    for (int64_t c = 0; c < C; ++c) {
      const F rstd = f ? f[2 * C + c] : F(1), S2 = to[C + c];
      sums[c] = f ? gamma[c] * S2 * F(eps1) * rstd * rstd * rstd : S2;
      sums[C + c] = S2 * weight[c] * rstd;
    }
    write_list<F>(ddw, &sums[0], C);
    write_list<F>(dgamma1, &sums[C], C);
  });
  return {dx, ddw, dgamma1, dbeta1, dpw, S};
}

// All steps: the gradients of x, dw, gamma1, beta1, pw, gamma2 and beta2.
std::tuple<Tensor, Tensor, Maybe, Maybe, Tensor, Maybe, Maybe> norm_backward(Maybe dy, Maybe d_attention, Tensor x,
                                                                             Tensor dw, Maybe gamma1, Maybe beta1,
                                                                             Tensor pw, Maybe gamma2, Maybe beta2,
                                                                             Tensor z, Tensor first, Tensor second,
                                                                             double eps1, bool relu_u, bool relu_z) {
  const auto [dl, totals, dgamma2, dbeta2] =
      norm_logit_gradient(dy, d_attention, x, z, second, gamma2, beta2, relu_z);
  const auto [dx, ddw, dgamma1, dbeta1, dpw, S] =
      norm_route(gamma1 ? Maybe() : dy, x, dw, gamma1 ? Maybe(first) : Maybe(), gamma1, beta1, pw, z, second, dl,
                 gamma2 ? Maybe(totals) : Maybe(), eps1, relu_u, relu_z);
  if (gamma1) norm_complete(dy, x, z, second, first, dw, S, dx, relu_z);
  return {dx, ddw, dgamma1, dbeta1, dpw, dgamma2, dbeta2};
}

}  // namespace ulsam
