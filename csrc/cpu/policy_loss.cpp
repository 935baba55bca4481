// Each row: its statistics, its token's loss and coefficients, and then its gradient, from the second-level cache, where
// a row of logits still is. The formulas are those of kernels/srpo_kernels/losses.py; in double, as there is one a row.

#include "policy_loss.h"

#include <array>

#include "rows.h"

namespace srpo::cpu {
namespace {

constexpr double kLogRatioBound = 20;
constexpr int64_t kValues = 5;

struct Options {
  double clip_low, clip_high, dual_clip;
  bool cispo;
  int64_t kl;
  double kl_coef, entropy_coef, tis_cap;
};

struct Token {
  double logprob, entropy, advantage, weight, old_logprob;
  std::optional<double> ref_logprob, rollout_logprob;
};

struct Loss {
  double loss, policy, kl, clipped;    // the loss is weighted, the others are not
  double grad_logprob, grad_entropy;  // of the weighted loss
};

// (value, derivative) in logprob of the estimator of KL(policy || reference).
std::array<double, 2> divergence(double x, int64_t estimator) {
  if (estimator == 1) return {x, 1};
  if (estimator == 2) return {0.5 * x * x, x};
  const double d = std::min(-x, kLogRatioBound);
  const double growth = std::expm1(d);
  const double value = std::abs(d) < 1e-2 ? d * d * (0.5 + d * (1.0 / 6 + d * (1.0 / 24 + d / 120))) : growth - d;
  return {value, -x > kLogRatioBound ? 0 : -growth};
}

Loss token_loss(const Token& token, const Options& options) {
  const double a = token.advantage, log_ratio = token.logprob - token.old_logprob;
  const double ratio = std::exp(std::clamp(log_ratio, -kLogRatioBound, kLogRatioBound));
  const double low = 1 - options.clip_low, high = 1 + options.clip_high, bounded = std::clamp(ratio, low, high);
  double policy, grad;
  bool clipped;
  if (options.cispo) {
    policy = -bounded * a * token.logprob;
    grad = -bounded * a;
    clipped = ratio < low || ratio > high;
  } else {
    clipped = (a > 0 && ratio > high) || (a < 0 && ratio < low);
    policy = -(clipped ? bounded : ratio) * a;
    grad = clipped || std::abs(log_ratio) > kLogRatioBound ? 0 : policy;
    if (a < 0 && ratio > options.dual_clip) {
      policy = -options.dual_clip * a;
      grad = 0;
      clipped = true;
    }
  }
  if (token.rollout_logprob) {
    const double importance = std::min(std::exp(token.old_logprob - *token.rollout_logprob), options.tis_cap);
    policy *= importance;
    grad *= importance;
  }
  std::array<double, 2> kl{0, 0};
  if (token.ref_logprob) kl = divergence(token.logprob - *token.ref_logprob, options.kl);
  double loss = policy;
  if (options.kl_coef != 0) {
    loss += options.kl_coef * kl[0];
    grad += options.kl_coef * kl[1];
  }
  if (options.entropy_coef != 0) loss -= options.entropy_coef * token.entropy;
  return {token.weight * loss, policy, kl[0], clipped ? 1.0 : 0.0, token.weight * grad,
          -token.weight * options.entropy_coef};
}

at::Tensor one_a_row(const at::Tensor& tensor, const char* name, int64_t rows) {
  TORCH_CHECK_VALUE(
      tensor.dim() == 1 && tensor.size(0) == rows && tensor.scalar_type() == at::kFloat,
      name, " must be [", rows, "] float, got ", tensor.sizes(), " ", tensor.scalar_type());
  return tensor.contiguous();
}

std::optional<at::Tensor> one_a_row(const std::optional<at::Tensor>& tensor, const char* name, int64_t rows) {
  return tensor ? std::optional<at::Tensor>(one_a_row(*tensor, name, rows)) : std::nullopt;
}

std::optional<double> optional_value(const std::optional<at::Tensor>& tensor, int64_t r) {
  return tensor ? std::optional<double>(tensor->const_data_ptr<float>()[r]) : std::nullopt;
}

// out: where the gradient goes, if anywhere; may be the logits themselves.
std::tuple<at::Tensor, at::Tensor> compute(
    const at::Tensor& logits, const at::Tensor& tokens, const at::Tensor& advantages, const at::Tensor& weights,
    const std::optional<at::Tensor>& old_logprobs, const std::optional<at::Tensor>& ref_logprobs,
    const std::optional<at::Tensor>& rollout_logprobs, double temperature, int64_t columns, const Options& options,
    const at::Tensor* out) {
  const Rows rows = check(logits, tokens, temperature, columns);
  const at::Tensor y = tokens.contiguous();
  const at::Tensor advantage = one_a_row(advantages, "advantages", rows.count);
  const at::Tensor weight = one_a_row(weights, "weights", rows.count);
  const auto old_logprob = one_a_row(old_logprobs, "old_logprobs", rows.count);
  const auto ref_logprob = one_a_row(ref_logprobs, "ref_logprobs", rows.count);
  const auto rollout_logprob = one_a_row(rollout_logprobs, "rollout_logprobs", rows.count);
  at::Tensor loss = at::empty({rows.count}, logits.options().dtype(at::kFloat));
  at::Tensor result = at::empty({rows.count, kValues}, loss.options());
  SRPO_DISPATCH(logits, [&] {
    const auto* logit = logits.const_data_ptr<scalar_t>();
    auto* gradient = out ? out->mutable_data_ptr<scalar_t>() : nullptr;
    for_each_row(rows, [&](int64_t r, const auto& sweep) {
      const auto* x = logit + r * rows.stride;
      const int64_t token = y.const_data_ptr<int64_t>()[r];
      float* row_loss = loss.mutable_data_ptr<float>() + r;
      float* row_values = result.mutable_data_ptr<float>() + kValues * r;
      float maximum = 0;
      double constant = 0, slope = 0, target = 0;
      const float share = weight.const_data_ptr<float>()[r];
      if (share == 0) {
        *row_loss = 0;
        std::fill(row_values, row_values + kValues, 0.0f);
      } else {
        const Statistics row = row_statistics(x, rows, sweep);
        maximum = row.maximum;
        const double log_sum = std::log(row.sum), term = row.term / kLog2e;
        const double logit_y = rows.has(token) ? static_cast<float>(x[token]) : 0.0f;
        const double logprob = (logit_y - maximum) / temperature - log_sum, entropy = log_sum - term / row.sum;
        const Loss l = token_loss(
            {logprob, entropy, advantage.const_data_ptr<float>()[r], share,
             optional_value(old_logprob, r).value_or(logprob), optional_value(ref_logprob, r),
             optional_value(rollout_logprob, r)},
            options);
        *row_loss = static_cast<float>(l.loss);
        const double shown[kValues] = {logprob, entropy, l.policy, l.kl, l.clipped};
        std::transform(shown, shown + kValues, row_values, [](double value) { return static_cast<float>(value); });
        // -p (c + e (log p + H)) / T, with p = 2^d / sum and log p = d / log2(e) - log sum; then c / T at the token.
        const double scale = -1 / (row.sum * temperature);
        constant = scale * (l.grad_logprob + l.grad_entropy * (entropy - log_sum));
        slope = scale * l.grad_entropy / kLog2e;
        target = rows.has(token) ? l.grad_logprob / temperature : 0;
      }
      if (out) row_gradient(x, token, maximum, constant, slope, target, rows, sweep, gradient + r * out->stride(0));
    });
  });
  return {loss, result};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> policy_loss_rows(
    const at::Tensor& logits, const at::Tensor& tokens, const at::Tensor& advantages, const at::Tensor& weights,
    const std::optional<at::Tensor>& old_logprobs, const std::optional<at::Tensor>& ref_logprobs,
    const std::optional<at::Tensor>& rollout_logprobs, double temperature, int64_t columns, double clip_low,
    double clip_high, double dual_clip, bool cispo, int64_t kl, double kl_coef, double entropy_coef, double tis_cap,
    bool needs_grad) {
  const at::Tensor dense = unit_columns(logits);
  TORCH_CHECK_VALUE(dense.dim() == 2, "logits must be [N, V], got ", logits.sizes());
  at::Tensor grad = new_gradient(logits, needs_grad ? dense.size(0) : 0, dense.size(1));
  auto [loss, rows] = compute(
      dense, tokens, advantages, weights, old_logprobs, ref_logprobs, rollout_logprobs, temperature, columns,
      {clip_low, clip_high, dual_clip, cispo, kl, kl_coef, entropy_coef, tis_cap}, needs_grad ? &grad : nullptr);
  return {loss, rows, grad};
}

std::tuple<at::Tensor, at::Tensor> policy_loss_rows_(
    at::Tensor& logits, const at::Tensor& tokens, const at::Tensor& advantages, const at::Tensor& weights,
    const std::optional<at::Tensor>& old_logprobs, const std::optional<at::Tensor>& ref_logprobs,
    const std::optional<at::Tensor>& rollout_logprobs, double temperature, int64_t columns, double clip_low,
    double clip_high, double dual_clip, bool cispo, int64_t kl, double kl_coef, double entropy_coef, double tis_cap) {
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits must be [N, V], got ", logits.sizes());
  const at::Tensor apart = writable(logits) ? logits : logits.contiguous();
  auto result = compute(
      apart, tokens, advantages, weights, old_logprobs, ref_logprobs, rollout_logprobs, temperature, columns,
      {clip_low, clip_high, dual_clip, cispo, kl, kl_coef, entropy_coef, tis_cap}, &apart);
  if (!apart.is_same(logits)) logits.copy_(apart);
  logits.unsafeGetTensorImpl()->bump_version();
  return result;
}

void scale_rows_(at::Tensor& matrix, const at::Tensor& scale) {
  check_scale(matrix, scale);
  SRPO_DISPATCH(matrix, [&] {
    auto* x = matrix.mutable_data_ptr<scalar_t>();
    const float* s = scale.const_data_ptr<float>();
    parallel(matrix.size(0), [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r)
        if (const float factor = s[r * scale.stride(0)]; factor != 1)
          segment_scale(x + r * matrix.stride(0), matrix.size(1), factor);
    });
  });
  matrix.unsafeGetTensorImpl()->bump_version();
}

}  // namespace srpo::cpu
