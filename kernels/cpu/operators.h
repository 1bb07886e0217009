// The operators that bindings.cpp registers; what each computes stands above it.
#pragma once

#include "tensors.h"

namespace ulsam {

void forward(Tensor x, Tensor scale, Maybe shift, Tensor v, Maybe b, Maybe second, Maybe y, Tensor z, Maybe attention,
             Maybe lse, int64_t num_splits, bool relu_u, bool relu_z, bool logits, bool apply);

void folded_forward(Tensor x, Maybe dw, Maybe dw_bias, Maybe gamma1, Maybe beta1, Maybe mean1, Maybe var1, double eps1,
                    Tensor pw, Maybe pw_bias, Tensor gamma2, Tensor beta2, Tensor mean2, Tensor var2, double eps2,
                    Tensor y, Tensor z, Maybe attention, int64_t num_splits, bool relu_u, bool relu_z);

void backward(Maybe dy, Maybe d_attention, Tensor x, Tensor scale, Maybe shift, Tensor v, Tensor z, Tensor dx,
              Tensor dscale, Maybe dshift, Tensor dv, Maybe db, int64_t num_splits, bool relu_u, bool relu_z);

void moments(Tensor x, Tensor parts);

void norm_fold(Tensor parts, Maybe factor, Tensor gamma, Maybe beta, double eps, Tensor rows, Maybe offset,
               Maybe running_mean, Maybe running_var, Maybe bias, double momentum);

void norm_logit_gradient(Maybe dy, Maybe d_attention, Tensor x, Tensor z, Tensor second, Tensor dl, Tensor totals,
                         int64_t num_splits, bool relu_z);

void norm_route(Maybe dy, Tensor x, Tensor dw, Maybe first, Maybe gamma1, Maybe beta1, Tensor pw, Tensor z,
                Tensor second, Tensor dl, Maybe totals, Tensor dx, Tensor ddw, Maybe dgamma1, Maybe dbeta1, Tensor dpw,
                Tensor S, int64_t num_splits, double eps1, bool relu_u, bool relu_z);

void norm_complete(Maybe dy, Tensor x, Tensor z, Tensor second, Tensor first, Tensor dw, Tensor S, Tensor dx,
                   int64_t num_splits, bool relu_z);

}  // namespace ulsam
