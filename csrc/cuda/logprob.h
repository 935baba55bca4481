// Launches of the kernels over rows of logits, in plain pointers: nvcc needs nothing of torch, the host's compiler
// nothing of CUDA but its runtime's names. T: float, BFloat16 or Half. Each returns the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "shape.h"

namespace srpo::cuda {

// Bytes of scratch that launch_statistics needs; none unless rows are split.
int64_t scratch_bytes(const Shape& shape);

// statistics [rows, 4].
template <typename T>
cudaError_t launch_statistics(
    const T* logits, const int64_t* tokens, const Shape& shape, void* scratch, float* statistics, cudaStream_t stream);

// grad, statistics [rows, 4]. out may be the logits; its rows are out_stride apart.
template <typename T>
cudaError_t launch_gradient(
    const float* grad, const float* statistics, const T* logits, const int64_t* tokens, const Shape& shape, T* out,
    int64_t out_stride, cudaStream_t stream);

// Row n *= scale[n * scale_stride]; untouched where that is 1.
template <typename T>
cudaError_t launch_scale(
    T* matrix, const float* scale, int64_t scale_stride, const Shape& shape, cudaStream_t stream);

}  // namespace srpo::cuda
