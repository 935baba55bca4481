// One read of the logits forward; one read and one write backward.

#include "logprob.h"

#include <atomic>

#include "rows.h"

namespace srpo::cpu {
namespace {

std::atomic<int64_t> thread_cap{0};

// out may be the logits themselves.
void backward_into(
    const at::Tensor& grad, const at::Tensor& statistics, const at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns, const at::Tensor& out) {
  const Rows rows = check(logits, tokens, temperature, columns);
  check_gradient(grad, statistics, rows.count);
  const at::Tensor g = grad.contiguous(), s = statistics.contiguous(), y = tokens.contiguous();
  SRPO_DISPATCH(logits, [&] {
    const auto* x = logits.const_data_ptr<scalar_t>();
    auto* target = out.mutable_data_ptr<scalar_t>();
    for_each_row(rows, [&](int64_t r, const auto& sweep) {
      const float* gr = g.const_data_ptr<float>() + 4 * r;
      const double sum = gr[1], term = gr[2];
      row_gradient(
          x + r * rows.stride, y.const_data_ptr<int64_t>()[r], s.const_data_ptr<float>()[4 * r],
          (sum + term) / temperature, term / (kLog2e * temperature), gr[3], rows, sweep, target + r * out.stride(0));
    });
  });
}

}  // namespace

at::Tensor logprob_statistics(
    const at::Tensor& logits, const at::Tensor& tokens, double temperature, int64_t columns, bool) {
  const at::Tensor dense = unit_columns(logits), y = tokens.contiguous();
  const Rows rows = check(dense, tokens, temperature, columns);
  at::Tensor statistics = at::empty({rows.count, 4}, logits.options().dtype(at::kFloat));
  SRPO_DISPATCH(dense, [&] {
    for_each_row(rows, [&](int64_t r, const auto& sweep) {
      const auto* x = dense.const_data_ptr<scalar_t>() + r * rows.stride;
      const Statistics row = row_statistics(x, rows, sweep);
      const int64_t token = y.const_data_ptr<int64_t>()[r];
      float* out = statistics.mutable_data_ptr<float>() + 4 * r;
      out[0] = row.maximum;
      out[1] = static_cast<float>(row.sum);
      out[2] = static_cast<float>(row.term / kLog2e);
      out[3] = rows.has(token) ? static_cast<float>(x[token]) : 0.0f;
    });
  });
  return statistics;
}

at::Tensor logprob_statistics_backward(
    const at::Tensor& grad, const at::Tensor& statistics, const at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns) {
  const at::Tensor dense = unit_columns(logits);
  check(dense, tokens, temperature, columns);
  const at::Tensor out = new_gradient(dense, dense.size(0), dense.size(1));
  backward_into(grad, statistics, dense, tokens, temperature, columns, out);
  return out;
}

void logprob_statistics_backward_(
    const at::Tensor& grad, const at::Tensor& statistics, at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns) {
  check(logits, tokens, temperature, columns);
  if (writable(logits))
    backward_into(grad, statistics, logits, tokens, temperature, columns, logits);
  else
    logits.copy_(logprob_statistics_backward(grad, statistics, logits, tokens, temperature, columns));
  logits.unsafeGetTensorImpl()->bump_version();  // or autograd would not notice that the logits are gone
}

std::string instructions() {
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return "AVX-512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "AVX2";
#endif
  return "baseline";
}

void set_num_threads(int64_t threads) {
  TORCH_CHECK_VALUE(threads >= 0, "threads must be 0 (torch's own number) or positive, got ", threads);
  thread_cap = threads;
}

int64_t num_threads() {
  const int64_t available = at::get_num_threads(), cap = thread_cap;
  return cap > 0 ? std::min(cap, available) : available;
}

}  // namespace srpo::cpu
