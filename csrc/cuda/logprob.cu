#include "logprob.h"

#include "rows.cuh"

namespace srpo::cuda {

template <typename T>
cudaError_t launch_statistics(
    const T* logits, const int64_t* tokens, const Shape& shape, float* partials, float* statistics, int blocks,
    cudaStream_t stream) {
  auto* scratch = reinterpret_cast<Partial*>(partials);
  statistics_kernel<<<blocks, kThreads, 0, stream>>>(logits, tokens, shape, scratch, statistics);
  if (shape.splits > 1) {
    const int merge_blocks = static_cast<int>((shape.rows + kWarps - 1) / kWarps);
    merge_kernel<<<merge_blocks, kThreads, 0, stream>>>(logits, tokens, shape, scratch, statistics);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_gradient(
    const float* grad, const float* statistics, const T* logits, const int64_t* tokens, const Shape& shape, T* out,
    int blocks, cudaStream_t stream) {
  gradient_kernel<<<blocks, kThreads, 0, stream>>>(grad, statistics, logits, tokens, shape, out);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_scale(
    T* matrix, const float* scale, int64_t scale_stride, const Shape& shape, int blocks, cudaStream_t stream) {
  scale_kernel<<<blocks, kThreads, 0, stream>>>(matrix, scale, scale_stride, shape);
  return cudaGetLastError();
}

#define SRPO_INSTANTIATE(T)                                                                                       \
  template cudaError_t launch_statistics(                                                                         \
      const T*, const int64_t*, const Shape&, float*, float*, int, cudaStream_t);                                 \
  template cudaError_t launch_gradient(                                                                           \
      const float*, const float*, const T*, const int64_t*, const Shape&, T*, int, cudaStream_t);                 \
  template cudaError_t launch_scale(T*, const float*, int64_t, const Shape&, int, cudaStream_t);
SRPO_INSTANTIATE(float)
SRPO_INSTANTIATE(BFloat16)
SRPO_INSTANTIATE(Half)
#undef SRPO_INSTANTIATE

}  // namespace srpo::cuda
