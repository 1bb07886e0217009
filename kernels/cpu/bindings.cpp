// The library of operators `ulsam_fused_cpu`, by PyTorch's stable interface: one build serves PyTorch 2.10 and newer.
#include "operators.h"

STABLE_TORCH_LIBRARY(ulsam_fused_cpu, m) {
  m.def(
      "forward(Tensor x, Tensor scale, Tensor? shift, Tensor v, Tensor? b, Tensor? second, Tensor(a!)? y, "
      "Tensor(b!) z, Tensor(c!)? attention, Tensor(d!)? lse, int num_splits, bool relu_u, bool relu_z, bool logits, "
      "bool apply) -> ()");
  m.def(
      "folded_forward(Tensor x, Tensor? dw, Tensor? dw_bias, Tensor? gamma1, Tensor? beta1, Tensor? mean1, "
      "Tensor? var1, float eps1, Tensor pw, Tensor? pw_bias, Tensor gamma2, Tensor beta2, Tensor mean2, Tensor var2, "
      "float eps2, Tensor(a!) y, Tensor(b!) z, Tensor(c!)? attention, int num_splits, bool relu_u, bool relu_z) -> ()");
  m.def(
      "backward(Tensor? dy, Tensor? d_attention, Tensor x, Tensor scale, Tensor? shift, Tensor v, Tensor z, "
      "Tensor(a!) dx, Tensor(b!) dscale, Tensor(c!)? dshift, Tensor(d!) dv, Tensor(e!)? db, int num_splits, "
      "bool relu_u, bool relu_z) -> ()");
  m.def("moments(Tensor x, Tensor(a!) parts) -> ()");
  m.def(
      "norm_fold(Tensor parts, Tensor? factor, Tensor gamma, Tensor? beta, float eps, Tensor(a!) rows, "
      "Tensor(b!)? offset, Tensor(c!)? running_mean, Tensor(d!)? running_var, Tensor? bias, float momentum) -> ()");
  m.def(
      "norm_logit_gradient(Tensor? dy, Tensor? d_attention, Tensor x, Tensor z, Tensor second, Tensor(a!) dl, "
      "Tensor(b!) totals, int num_splits, bool relu_z) -> ()");
  m.def(
      "norm_route(Tensor? dy, Tensor x, Tensor dw, Tensor? first, Tensor? gamma1, Tensor? beta1, Tensor pw, Tensor z, "
      "Tensor second, Tensor dl, Tensor? totals, Tensor(a!) dx, Tensor(b!) ddw, Tensor(c!)? dgamma1, "
      "Tensor(d!)? dbeta1, Tensor(e!) dpw, Tensor(f!) S, int num_splits, float eps1, bool relu_u, bool relu_z) -> ()");
  m.def(
      "norm_complete(Tensor? dy, Tensor x, Tensor z, Tensor second, Tensor first, Tensor dw, Tensor S, "
      "Tensor(a!) dx, int num_splits, bool relu_z) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ulsam_fused_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&ulsam::forward));
  m.impl("folded_forward", TORCH_BOX(&ulsam::folded_forward));
  m.impl("backward", TORCH_BOX(&ulsam::backward));
  m.impl("moments", TORCH_BOX(&ulsam::moments));
  m.impl("norm_fold", TORCH_BOX(&ulsam::norm_fold));
  m.impl("norm_logit_gradient", TORCH_BOX(&ulsam::norm_logit_gradient));
  m.impl("norm_route", TORCH_BOX(&ulsam::norm_route));
  m.impl("norm_complete", TORCH_BOX(&ulsam::norm_complete));
}
