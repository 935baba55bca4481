// Launches of the kernels over rows of logits, in plain pointers: nvcc needs nothing of torch, the host compiler nothing
// of CUDA but the name of a stream. T: float, BFloat16 or Half. Each returns the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "shape.h"

namespace srpo::cuda {

// statistics [rows, 4]; partials: scratch of 3 * rows * shape.splits floats, unused if splits is 1.
template <typename T>
cudaError_t launch_statistics(
    const T* logits, const int64_t* tokens, const Shape& shape, float* partials, float* statistics, int blocks,
    cudaStream_t stream);

// grad, statistics [rows, 4]. out may be the logits; its rows are columns_total apart.
template <typename T>
cudaError_t launch_gradient(
    const float* grad, const float* statistics, const T* logits, const int64_t* tokens, const Shape& shape, T* out,
    int blocks, cudaStream_t stream);

// Row n *= scale[n * scale_stride]; untouched where that is 1.
template <typename T>
cudaError_t launch_scale(
    T* matrix, const float* scale, int64_t scale_stride, const Shape& shape, int blocks, cudaStream_t stream);

}  // namespace srpo::cuda
