#include "logprob.h"

#include "rows.cuh"

namespace srpo::cuda {

int64_t scratch_bytes(const Shape& shape) {
  return shape.splits == 1 ? 0 : shape.rows * shape.segments * kThreads * static_cast<int64_t>(sizeof(Partial));
}

template <typename T>
cudaError_t launch_statistics(
    const T* logits, const int64_t* tokens, const Shape& shape, void* scratch, float* statistics, cudaStream_t stream) {
  auto* partials = static_cast<Partial*>(scratch);
  statistics_kernel<<<shape.blocks, kThreads, 0, stream>>>(logits, tokens, shape, partials, statistics);
  if (shape.splits > 1)
    merge_kernel<<<static_cast<int>(shape.rows), kThreads, 0, stream>>>(logits, tokens, shape, partials, statistics);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_gradient(
    const float* grad, const float* statistics, const T* logits, const int64_t* tokens, const Shape& shape, T* out,
    int64_t out_stride, cudaStream_t stream) {
  gradient_kernel<<<shape.blocks, kThreads, 0, stream>>>(grad, statistics, logits, tokens, shape, out, out_stride);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_scale(
    T* matrix, const float* scale, int64_t scale_stride, const Shape& shape, cudaStream_t stream) {
  scale_kernel<<<shape.blocks, kThreads, 0, stream>>>(matrix, scale, scale_stride, shape);
  return cudaGetLastError();
}

#define SRPO_INSTANTIATE(T)                                                                                       \
  template cudaError_t launch_statistics(                                                                         \
      const T*, const int64_t*, const Shape&, void*, float*, cudaStream_t);                                       \
  template cudaError_t launch_gradient(                                                                           \
      const float*, const float*, const T*, const int64_t*, const Shape&, T*, int64_t, cudaStream_t);             \
  template cudaError_t launch_scale(T*, const float*, int64_t, const Shape&, cudaStream_t);
SRPO_INSTANTIATE(float)
SRPO_INSTANTIATE(BFloat16)
SRPO_INSTANTIATE(Half)
#undef SRPO_INSTANTIATE

}  // namespace srpo::cuda
