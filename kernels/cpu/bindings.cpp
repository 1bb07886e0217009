// The library of operators `ulsam_fused_cpu`, by PyTorch's stable interface: one build serves PyTorch 2.10 and newer.
#include "operators.h"

STABLE_TORCH_LIBRARY(ulsam_fused_cpu, m) {
  m.def(
      "forward(Tensor x, Tensor scale, Tensor? shift, Tensor v, Tensor? b, int num_splits, bool relu_u, bool relu_z, "
      "bool wide, bool need_attention, bool need_lse) -> (Tensor, Tensor?, Tensor, Tensor?)");
  m.def(
      "folded_forward(Tensor x, Tensor? dw, Tensor? dw_bias, Tensor? gamma1, Tensor? beta1, Tensor? mean1, "
      "Tensor? var1, float eps1, Tensor pw, Tensor? pw_bias, Tensor gamma2, Tensor beta2, Tensor mean2, Tensor var2, "
      "float eps2, int num_splits, bool relu_u, bool relu_z, bool wide, bool need_attention) -> (Tensor, Tensor?)");
  m.def(
      "backward(Tensor? dy, Tensor? d_attention, Tensor x, Tensor scale, Tensor? shift, Tensor v, Tensor? b, Tensor z, "
      "int num_splits, bool relu_u, bool relu_z) -> (Tensor, Tensor, Tensor?, Tensor, Tensor?)");
  m.def("moments(Tensor x) -> Tensor");
  m.def(
      "norm_logits(Tensor x, Tensor? parts, Tensor dw, Tensor? gamma1, Tensor? beta1, float eps1, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? bias, float momentum, Tensor pw, int num_splits, "
      "bool relu_u) -> (Tensor, Tensor)");
  m.def(
      "norm_apply(Tensor x, Tensor z, Tensor? parts, Tensor? gamma2, Tensor? beta2, float eps2, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? bias, float momentum, bool relu_z, bool wide, "
      "bool need_attention) -> (Tensor, Tensor?, Tensor, Tensor)");
  m.def(
      "norm_logit_gradient(Tensor? dy, Tensor? d_attention, Tensor x, Tensor z, Tensor second, Tensor? gamma2, "
      "Tensor? beta2, bool relu_z) -> (Tensor, Tensor, Tensor?, Tensor?)");
  m.def(
      "norm_route(Tensor? dy, Tensor x, Tensor dw, Tensor? first, Tensor? gamma1, Tensor? beta1, Tensor pw, Tensor z, "
      "Tensor second, Tensor dl, Tensor? totals, float eps1, bool relu_u, bool relu_z) -> "
      "(Tensor, Tensor, Tensor?, Tensor?, Tensor, Tensor)");
  m.def(
      "norm_complete(Tensor? dy, Tensor x, Tensor z, Tensor second, Tensor first, Tensor dw, Tensor S, "
      "Tensor(a!) dx, bool relu_z) -> ()");
  m.def(
      "norm_forward(Tensor x, Tensor dw, Tensor? gamma1, Tensor? beta1, float eps1, Tensor(a!)? running_mean1, "
      "Tensor(b!)? running_var1, Tensor? bias1, float momentum1, Tensor pw, Tensor? gamma2, Tensor? beta2, float eps2, "
      "Tensor(c!)? running_mean2, Tensor(d!)? running_var2, Tensor? bias2, float momentum2, int num_splits, "
      "bool relu_u, bool relu_z, bool wide, bool need_attention) -> "
      "(Tensor, Tensor?, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "norm_backward(Tensor? dy, Tensor? d_attention, Tensor x, Tensor dw, Tensor? gamma1, Tensor? beta1, Tensor pw, "
      "Tensor? gamma2, Tensor? beta2, Tensor z, Tensor first, Tensor second, float eps1, bool relu_u, bool relu_z) -> "
      "(Tensor, Tensor, Tensor?, Tensor?, Tensor, Tensor?, Tensor?)");
}

STABLE_TORCH_LIBRARY_IMPL(ulsam_fused_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&ulsam::forward));
  m.impl("folded_forward", TORCH_BOX(&ulsam::folded_forward));
  m.impl("backward", TORCH_BOX(&ulsam::backward));
  m.impl("moments", TORCH_BOX(&ulsam::moments));
  m.impl("norm_logits", TORCH_BOX(&ulsam::norm_logits));
  m.impl("norm_apply", TORCH_BOX(&ulsam::norm_apply));
  m.impl("norm_logit_gradient", TORCH_BOX(&ulsam::norm_logit_gradient));
  m.impl("norm_route", TORCH_BOX(&ulsam::norm_route));
  m.impl("norm_complete", TORCH_BOX(&ulsam::norm_complete));
  m.impl("norm_forward", TORCH_BOX(&ulsam::norm_forward));
  m.impl("norm_backward", TORCH_BOX(&ulsam::norm_backward));
}
