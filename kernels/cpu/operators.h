// The operators that bindings.cpp registers; what each computes stands above it.
#pragma once

#include <tuple>

#include "tensors.h"

namespace ulsam {

std::tuple<Tensor, Maybe, Tensor, Maybe> forward(Tensor x, Tensor scale, Maybe shift, Tensor v, Maybe b,
                                                 int64_t num_splits, bool relu_u, bool relu_z, bool wide,
                                                 bool need_attention, bool need_lse);

std::tuple<Tensor, Maybe> folded_forward(Tensor x, Maybe dw, Maybe dw_bias, Maybe gamma1, Maybe beta1, Maybe mean1,
                                         Maybe var1, double eps1, Tensor pw, Maybe pw_bias, Tensor gamma2, Tensor beta2,
                                         Tensor mean2, Tensor var2, double eps2, int64_t num_splits, bool relu_u,
                                         bool relu_z, bool wide, bool need_attention);

std::tuple<Tensor, Tensor, Maybe, Tensor, Maybe> backward(Maybe dy, Maybe d_attention, Tensor x, Tensor scale,
                                                          Maybe shift, Tensor v, Maybe b, Tensor z, int64_t num_splits,
                                                          bool relu_u, bool relu_z);

Tensor moments(Tensor x);

std::tuple<Tensor, Tensor> norm_logits(Tensor x, Maybe parts, Tensor dw, Maybe gamma1, Maybe beta1, double eps1,
                                       Maybe running_mean, Maybe running_var, Maybe bias, double momentum, Tensor pw,
                                       int64_t num_splits, bool relu_u);

std::tuple<Tensor, Maybe, Tensor, Tensor> norm_apply(Tensor x, Tensor z, Maybe parts, Maybe gamma2, Maybe beta2,
                                                     double eps2, Maybe running_mean, Maybe running_var, Maybe bias,
                                                     double momentum, bool relu_z, bool wide, bool need_attention);

std::tuple<Tensor, Tensor, Maybe, Maybe> norm_logit_gradient(Maybe dy, Maybe d_attention, Tensor x, Tensor z,
                                                             Tensor second, Maybe gamma2, Maybe beta2, bool relu_z);

std::tuple<Tensor, Tensor, Maybe, Maybe, Tensor, Tensor> norm_route(Maybe dy, Tensor x, Tensor dw, Maybe first,
                                                                    Maybe gamma1, Maybe beta1, Tensor pw, Tensor z,
                                                                    Tensor second, Tensor dl, Maybe totals, double eps1,
                                                                    bool relu_u, bool relu_z);

void norm_complete(Maybe dy, Tensor x, Tensor z, Tensor second, Tensor first, Tensor dw, Tensor S, Tensor dx,
                   bool relu_z);

// All of the two, and of the three, in one call, where no other process takes part.
std::tuple<Tensor, Maybe, Tensor, Tensor, Tensor, Tensor> norm_forward(
    Tensor x, Tensor dw, Maybe gamma1, Maybe beta1, double eps1, Maybe running_mean1, Maybe running_var1, Maybe bias1,
    double momentum1, Tensor pw, Maybe gamma2, Maybe beta2, double eps2, Maybe running_mean2, Maybe running_var2,
    Maybe bias2, double momentum2, int64_t num_splits, bool relu_u, bool relu_z, bool wide, bool need_attention);

std::tuple<Tensor, Tensor, Maybe, Maybe, Tensor, Maybe, Maybe> norm_backward(Maybe dy, Maybe d_attention, Tensor x,
                                                                             Tensor dw, Maybe gamma1, Maybe beta1,
                                                                             Tensor pw, Maybe gamma2, Maybe beta2,
                                                                             Tensor z, Tensor first, Tensor second,
                                                                             double eps1, bool relu_u, bool relu_z);

// Not registered: what they share.

void norm_fold(Tensor parts, Maybe factor, Tensor gamma, Maybe beta, double eps, Tensor rows, Maybe offset,
               Maybe running_mean, Maybe running_var, Maybe bias, double momentum);

}  // namespace ulsam
