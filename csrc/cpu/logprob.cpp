// One read of the logits forward; one read and one write backward.
//
// A row is taken in blocks that stay in the first-level cache between finding their maximum and summing their
// exponentials. A block's sums are floats in 64 lanes, the row's are doubles, so that the error does not grow with V.

#include "logprob.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "simd.h"

namespace srpo::cpu {
namespace {

constexpr int64_t kBlock = 4096;
constexpr int64_t kUnroll = 4;  // independent accumulators hide the latency of add and max
constexpr int64_t kStride = kUnroll * kLanes;

std::atomic<int64_t> thread_cap{0};

// Row r of the logits starts at r * stride, of the gradient at r * columns_total; both have unit column stride.
struct Shape {
  int64_t columns;        // that take part
  int64_t columns_total;  // with padding
  int64_t stride;
  float inverse_temperature;
};

template <typename T>
SRPO_INLINE Floats load_tail(const T* source, int64_t count) {
  float values[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) values[i] = i < count ? static_cast<float>(source[i]) : -kInfinity;
  return load(values);
}

// (x - m) / T, bounded below where exp is 0 anyway, so that 0 * -inf never forms.
SRPO_INLINE Floats distance(Floats x, float maximum, float inverse_temperature) {
  const Floats d = (x - maximum) * inverse_temperature;
  return d < -88.0f ? broadcast(-88.0f) : d;
}

template <typename T>
SRPO_INLINE float block_max(const T* x, int64_t count) {
  Floats best[kUnroll];
  for (auto& b : best) b = broadcast(-kInfinity);
  int64_t j = 0;
  for (; j + kStride <= count; j += kStride)
    for (int64_t u = 0; u < kUnroll; ++u) best[u] = maximum(load(x + j + u * kLanes), best[u]);
  for (; j + kLanes <= count; j += kLanes) best[0] = maximum(load(x + j), best[0]);
  if (j < count) best[0] = maximum(load_tail(x + j, count - j), best[0]);
  return reduce_max(maximum(maximum(best[0], best[1]), maximum(best[2], best[3])));
}

SRPO_INLINE void accumulate(Floats d, Floats& sum, Floats& term) {
  const Floats e = exp_nonpositive(d);
  sum += e;
  term += e * d;
}

template <typename T>
SRPO_INLINE void block_sums(const T* x, int64_t count, float m, float inverse_temperature, double& s, double& t) {
  Floats sum[kUnroll] = {}, term[kUnroll] = {};
  int64_t j = 0;
  for (; j + kStride <= count; j += kStride)
    for (int64_t u = 0; u < kUnroll; ++u)
      accumulate(distance(load(x + j + u * kLanes), m, inverse_temperature), sum[u], term[u]);
  for (; j + kLanes <= count; j += kLanes)
    accumulate(distance(load(x + j), m, inverse_temperature), sum[0], term[0]);
  if (j < count) accumulate(distance(load_tail(x + j, count - j), m, inverse_temperature), sum[0], term[0]);
  s += reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
  t += reduce_add((term[0] + term[1]) + (term[2] + term[3]));
}

template <typename T>
SRPO_INLINE void forward_row(const T* x, int64_t token, const Shape& shape, float* statistics) {
  float m = -kInfinity;
  double s = 0, t = 0;
  for (int64_t j = 0; j < shape.columns; j += kBlock) {
    const int64_t count = std::min(kBlock, shape.columns - j);
    const float best = block_max(x + j, count);
    if (best > m) {
      if (m != -kInfinity) {
        const double d = (static_cast<double>(m) - best) * shape.inverse_temperature;
        t = std::exp(d) * (t + d * s);
        s *= std::exp(d);
      }
      m = best;
    }
    // A block of -inf alone has no maximum to subtract, but a NaN in it must still reach the sum.
    block_sums(x + j, count, m == -kInfinity ? 0.0f : m, shape.inverse_temperature, s, t);
  }
  statistics[0] = m;
  statistics[1] = static_cast<float>(s);
  statistics[2] = static_cast<float>(t);
  statistics[3] = token >= 0 && token < shape.columns ? static_cast<float>(x[token]) : 0.0f;
}

// x and out may be the same row: each vector is read before it is written.
template <typename T>
SRPO_INLINE void backward_row(
    const float* grad, const float* statistics, const T* x, int64_t token, const Shape& shape, T* out) {
  const float grad_sum = grad[1], grad_term = grad[2], grad_target = grad[3];
  if (grad_sum == 0 && grad_term == 0 && grad_target == 0) {  // masked or clipped: whatever the logits hold
    std::fill(out, out + shape.columns_total, T(0.0f));
    return;
  }
  const float m = statistics[0] == -kInfinity ? 0.0f : statistics[0];
  const auto gradient = [&](Floats values) __attribute__((always_inline)) {
    const Floats d = distance(values, m, shape.inverse_temperature);
    return exp_nonpositive(d) * ((grad_sum + grad_term) + grad_term * d) * shape.inverse_temperature;
  };
  const bool here = token >= 0 && token < shape.columns;
  // Added before rounding to T: p_y - 1 of a likely token would vanish after it.
  const float target = here ? gradient(broadcast(static_cast<float>(x[token])))[0] + grad_target : 0.0f;
  int64_t j = 0;
  for (; j + kLanes <= shape.columns; j += kLanes) store(out + j, gradient(load(x + j)));
  if (j < shape.columns) {
    const Floats values = gradient(load_tail(x + j, shape.columns - j));
    for (int64_t i = 0; j + i < shape.columns; ++i) out[j + i] = static_cast<T>(values[i]);
  }
  std::fill(out + shape.columns, out + shape.columns_total, T(0.0f));
  if (here) out[token] = static_cast<T>(target);
}

template <typename T>
SRPO_INLINE void forward_rows(const T* x, const int64_t* tokens, Shape shape, int64_t from, int64_t to, float* out) {
  for (int64_t r = from; r < to; ++r) forward_row(x + r * shape.stride, tokens[r], shape, out + 4 * r);
}

template <typename T>
SRPO_INLINE void backward_rows(
    const float* grad, const float* statistics, const T* x, const int64_t* tokens, Shape shape, int64_t from,
    int64_t to, T* out, int64_t out_stride) {
  for (int64_t r = from; r < to; ++r)
    backward_row(grad + 4 * r, statistics + 4 * r, x + r * shape.stride, tokens[r], shape, out + r * out_stride);
}

// Compilers clone plain functions, not templates: one a type.
#define SRPO_DEFINE_ROWS(T)                                                                                       \
  SRPO_CLONES void run_forward(                                                                                   \
      const T* x, const int64_t* tokens, Shape shape, int64_t from, int64_t to, float* out) {                     \
    forward_rows(x, tokens, shape, from, to, out);                                                                \
  }                                                                                                               \
  SRPO_CLONES void run_backward(                                                                                  \
      const float* grad, const float* statistics, const T* x, const int64_t* tokens, Shape shape, int64_t from,   \
      int64_t to, T* out, int64_t out_stride) {                                                                   \
    backward_rows(grad, statistics, x, tokens, shape, from, to, out, out_stride);                                 \
  }
SRPO_DEFINE_ROWS(float)
SRPO_DEFINE_ROWS(c10::BFloat16)
SRPO_DEFINE_ROWS(c10::Half)
#undef SRPO_DEFINE_ROWS

Shape check(const at::Tensor& logits, const at::Tensor& tokens, double temperature, int64_t columns) {
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits must be [N, V], got ", logits.sizes());
  TORCH_CHECK_VALUE(
      tokens.dim() == 1 && tokens.size(0) == logits.size(0) && tokens.scalar_type() == at::kLong,
      "tokens must be [N] int64 with N = ", logits.size(0), ", got ", tokens.sizes(), " ", tokens.scalar_type());
  TORCH_CHECK_VALUE(temperature > 0, "temperature must be positive, got ", temperature);
  TORCH_CHECK_VALUE(
      columns >= 0 && columns <= logits.size(1), "columns must be within the ", logits.size(1), ", got ", columns);
  return {columns, logits.size(1), logits.stride(0), static_cast<float>(1.0 / temperature)};
}

at::Tensor unit_columns(const at::Tensor& logits) {
  return logits.size(1) <= 1 || logits.stride(1) == 1 ? logits : logits.contiguous();
}

template <typename Body>
void parallel_rows(int64_t rows, const Body& body) {
  at::parallel_for(0, rows, std::max<int64_t>(1, (rows + num_threads() - 1) / num_threads()), body);
}

#define SRPO_DISPATCH(TENSOR, ...)                            \
  AT_DISPATCH_SWITCH(                                         \
      (TENSOR).scalar_type(), "srpo::logprob_statistics",     \
      AT_DISPATCH_CASE(at::ScalarType::Float, __VA_ARGS__)    \
      AT_DISPATCH_CASE_REDUCED_FLOATING_TYPES(__VA_ARGS__))

// out may be the logits themselves.
void backward_into(
    const at::Tensor& grad, const at::Tensor& statistics, const at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns, const at::Tensor& out) {
  const Shape shape = check(logits, tokens, temperature, columns);
  TORCH_CHECK_VALUE(
      grad.sizes() == statistics.sizes() && grad.dim() == 2 && grad.size(0) == logits.size(0) && grad.size(1) == 4 &&
          grad.scalar_type() == at::kFloat && statistics.scalar_type() == at::kFloat,
      "grad and statistics must be [N, 4] float, got ", grad.sizes(), " and ", statistics.sizes());
  const at::Tensor g = grad.contiguous(), s = statistics.contiguous(), y = tokens.contiguous();
  SRPO_DISPATCH(logits, [&] {
    const auto* x = logits.const_data_ptr<scalar_t>();
    auto* target = out.mutable_data_ptr<scalar_t>();
    parallel_rows(logits.size(0), [&](int64_t from, int64_t to) {
      run_backward(
          g.const_data_ptr<float>(), s.const_data_ptr<float>(), x, y.const_data_ptr<int64_t>(), shape, from, to,
          target, out.stride(0));
    });
  });
}

}  // namespace

at::Tensor logprob_statistics(
    const at::Tensor& logits, const at::Tensor& tokens, double temperature, int64_t columns, bool) {
  const at::Tensor dense = unit_columns(logits), y = tokens.contiguous();
  const Shape shape = check(dense, tokens, temperature, columns);
  at::Tensor statistics = at::empty({logits.size(0), 4}, logits.options().dtype(at::kFloat));
  SRPO_DISPATCH(dense, [&] {
    parallel_rows(dense.size(0), [&](int64_t from, int64_t to) {
      run_forward(
          dense.const_data_ptr<scalar_t>(), y.const_data_ptr<int64_t>(), shape, from, to,
          statistics.mutable_data_ptr<float>());
    });
  });
  return statistics;
}

at::Tensor logprob_statistics_backward(
    const at::Tensor& grad, const at::Tensor& statistics, const at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns) {
  at::Tensor out = at::empty_like(logits, logits.options(), at::MemoryFormat::Contiguous);
  backward_into(grad, statistics, unit_columns(logits), tokens, temperature, columns, out);
  return out;
}

void logprob_statistics_backward_(
    const at::Tensor& grad, const at::Tensor& statistics, at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns) {
  if (logits.is_contiguous()) {
    backward_into(grad, statistics, logits, tokens, temperature, columns, logits);
    logits.unsafeGetTensorImpl()->bump_version();  // or autograd would not notice that the logits are gone
  } else {
    logits.copy_(logprob_statistics_backward(grad, statistics, logits, tokens, temperature, columns));
  }
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
  const int64_t available = at::get_num_threads();
  return thread_cap > 0 ? std::min<int64_t>(thread_cap, available) : available;
}

}  // namespace srpo::cpu
