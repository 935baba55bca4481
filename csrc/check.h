// What the operators check of their tensors, on any device.
#pragma once

#include <ATen/core/Tensor.h>

namespace srpo {

inline at::Tensor unit_columns(const at::Tensor& logits) {
  return logits.dim() != 2 || logits.size(1) <= 1 || logits.stride(1) == 1 ? logits : logits.contiguous();
}

inline void check_rows(const at::Tensor& logits, const at::Tensor& tokens, double temperature, int64_t columns) {
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits must be [N, V], got ", logits.sizes());
  TORCH_CHECK_VALUE(
      tokens.dim() == 1 && tokens.size(0) == logits.size(0) && tokens.scalar_type() == at::kLong,
      "tokens must be [N] int64 with N = ", logits.size(0), ", got ", tokens.sizes(), " ", tokens.scalar_type());
  TORCH_CHECK_VALUE(temperature > 0, "temperature must be positive, got ", temperature);
  TORCH_CHECK_VALUE(
      columns >= 0 && columns <= logits.size(1), "columns must be within the ", logits.size(1), ", got ", columns);
}

// Whether each row lies apart from the others, with unit column stride, so that it can be written in place.
inline bool writable(const at::Tensor& matrix) {
  return (matrix.size(1) <= 1 || matrix.stride(1) == 1) && (matrix.size(0) <= 1 || matrix.stride(0) >= matrix.size(1));
}

inline void check_gradient(const at::Tensor& grad, const at::Tensor& statistics, int64_t rows) {
  TORCH_CHECK_VALUE(
      grad.sizes() == statistics.sizes() && grad.dim() == 2 && grad.size(0) == rows && grad.size(1) == 4 &&
          grad.scalar_type() == at::kFloat && statistics.scalar_type() == at::kFloat,
      "grad and statistics must be [N, 4] float, got ", grad.sizes(), " and ", statistics.sizes());
}

inline void check_scale(const at::Tensor& matrix, const at::Tensor& scale) {
  TORCH_CHECK_VALUE(
      matrix.dim() == 2 && writable(matrix), "matrix must be [N, V] with unit column stride and rows apart, got ", matrix.sizes(), " with strides ", matrix.strides());
  TORCH_CHECK_VALUE(
      scale.dim() == 1 && scale.size(0) == matrix.size(0) && scale.scalar_type() == at::kFloat,
      "scale must be [", matrix.size(0), "] float, got ", scale.sizes(), " ", scale.scalar_type());
}

}  // namespace srpo
