// The policy loss and its gradient in one pass over the logits, on the CPU; ops.cpp's schemas say what each argument is.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace srpo::cpu {

std::tuple<at::Tensor, at::Tensor, at::Tensor> policy_loss_rows(
    const at::Tensor& logits, const at::Tensor& tokens, const at::Tensor& advantages, const at::Tensor& weights,
    const std::optional<at::Tensor>& old_logprobs, const std::optional<at::Tensor>& ref_logprobs,
    const std::optional<at::Tensor>& rollout_logprobs, double temperature, int64_t columns, double clip_low,
    double clip_high, double dual_clip, bool cispo, int64_t kl, double kl_coef, double entropy_coef, double tis_cap,
    bool needs_grad);

std::tuple<at::Tensor, at::Tensor> policy_loss_rows_(
    at::Tensor& logits, const at::Tensor& tokens, const at::Tensor& advantages, const at::Tensor& weights,
    const std::optional<at::Tensor>& old_logprobs, const std::optional<at::Tensor>& ref_logprobs,
    const std::optional<at::Tensor>& rollout_logprobs, double temperature, int64_t columns, double clip_low,
    double clip_high, double dual_clip, bool cispo, int64_t kl, double kl_coef, double entropy_coef, double tis_cap);

void scale_rows_(at::Tensor& matrix, const at::Tensor& scale);

}  // namespace srpo::cpu
