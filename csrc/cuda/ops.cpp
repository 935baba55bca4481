// The CUDA side of the operators in csrc/ops.cpp: the log-prob gather. (policy_loss_rows on CUDA is Triton's.)
//
// Of the CUDA parts of torch only the current stream is used: this file compiles against a CPU build of torch too.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <initializer_list>
#include <limits>

#include "../check.h"
#include "logprob.h"

namespace srpo::cuda {
namespace {

void check_device(const at::Tensor& logits, std::initializer_list<at::Tensor> others) {
  for (const at::Tensor& other : others)
    TORCH_CHECK_VALUE(
        other.device() == logits.device(), "all tensors must be on ", logits.device(), ", got one on ", other.device());
}

Shape shape_of(const at::Tensor& logits, int64_t columns, double temperature) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() / 2;  // column indices are ints
  TORCH_CHECK_VALUE(logits.size(1) <= kMost, "logits may have ", kMost, " columns, got ", logits.size(1));
  int multiprocessors = 0;
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, logits.device().index()));
  return make_shape(
      logits.size(0), logits.stride(0), static_cast<int>(columns), static_cast<int>(logits.size(1)),
      static_cast<int>(logits.element_size()), temperature, multiprocessors);
}

// body(a null pointer to the elements' type)
template <typename Body>
void dispatch(const at::Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return body(static_cast<float*>(nullptr));
    case at::kBFloat16: return body(static_cast<BFloat16*>(nullptr));
    case at::kHalf: return body(static_cast<Half*>(nullptr));
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "srpo on CUDA takes float, bfloat16 and half, got ", tensor.scalar_type());
  }
}

// out, [N, V] with unit column stride, may be the logits themselves.
void backward_into(
    const at::Tensor& grad, const at::Tensor& statistics, const at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns, const at::Tensor& out) {
  check_rows(logits, tokens, temperature, columns);
  check_gradient(grad, statistics, logits.size(0));
  check_device(logits, {grad, statistics, tokens});
  if (out.numel() == 0) return;
  const c10::DeviceGuard guard(logits.device());
  const at::Tensor g = grad.contiguous(), s = statistics.contiguous(), y = tokens.contiguous();
  const Shape shape = shape_of(logits, columns, temperature);
  dispatch(logits, [&]<typename T>(T*) {
    C10_CUDA_CHECK(launch_gradient(
        g.const_data_ptr<float>(), s.const_data_ptr<float>(), static_cast<const T*>(logits.const_data_ptr()),
        y.const_data_ptr<int64_t>(), shape, static_cast<T*>(out.mutable_data_ptr()), out.stride(0),
        c10::cuda::getCurrentCUDAStream()));
  });
}

at::Tensor logprob_statistics(
    const at::Tensor& logits, const at::Tensor& tokens, double temperature, int64_t columns, bool) {
  check_rows(logits, tokens, temperature, columns);
  check_device(logits, {tokens});
  const c10::DeviceGuard guard(logits.device());
  const at::Tensor dense = unit_columns(logits), y = tokens.contiguous();
  at::Tensor statistics = at::empty({logits.size(0), 4}, logits.options().dtype(at::kFloat));
  if (logits.size(0) == 0) return statistics;
  const Shape shape = shape_of(dense, columns, temperature);
  const at::Tensor scratch = at::empty({scratch_bytes(shape)}, logits.options().dtype(at::kByte));
  dispatch(dense, [&]<typename T>(T*) {
    C10_CUDA_CHECK(launch_statistics(
        static_cast<const T*>(dense.const_data_ptr()), y.const_data_ptr<int64_t>(), shape, scratch.mutable_data_ptr(),
        statistics.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
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
  check_rows(logits, tokens, temperature, columns);
  if (writable(logits))
    backward_into(grad, statistics, logits, tokens, temperature, columns, logits);
  else
    logits.copy_(logprob_statistics_backward(grad, statistics, logits, tokens, temperature, columns));
  logits.unsafeGetTensorImpl()->bump_version();  // or autograd would not notice that the logits are gone
}

void scale_rows_(at::Tensor& matrix, const at::Tensor& scale) {
  check_scale(matrix, scale);
  check_device(matrix, {scale});
  if (matrix.numel() == 0) return;
  const c10::DeviceGuard guard(matrix.device());
  const Shape shape = shape_of(matrix, matrix.size(1), 1.0);
  dispatch(matrix, [&]<typename T>(T*) {
    C10_CUDA_CHECK(launch_scale(
        static_cast<T*>(matrix.mutable_data_ptr()), scale.const_data_ptr<float>(), scale.stride(0), shape,
        c10::cuda::getCurrentCUDAStream()));
  });
  matrix.unsafeGetTensorImpl()->bump_version();
}

}  // namespace
}  // namespace srpo::cuda

TORCH_LIBRARY_IMPL(srpo, CUDA, m) {
  m.impl("logprob_statistics", &srpo::cuda::logprob_statistics);
  m.impl("logprob_statistics_backward", &srpo::cuda::logprob_statistics_backward);
  m.impl("logprob_statistics_backward_", &srpo::cuda::logprob_statistics_backward_);
  m.impl("scale_rows_", &srpo::cuda::scale_rows_);
}
