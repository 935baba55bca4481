// Row statistics of logits on the CPU; the schemas in ops.cpp say what each argument is.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace srpo::cpu {

at::Tensor logprob_statistics(
    const at::Tensor& logits, const at::Tensor& tokens, double temperature, int64_t columns, bool inplace_backward);

at::Tensor logprob_statistics_backward(
    const at::Tensor& grad, const at::Tensor& statistics, const at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns);

void logprob_statistics_backward_(
    const at::Tensor& grad, const at::Tensor& statistics, at::Tensor& logits, const at::Tensor& tokens,
    double temperature, int64_t columns);

// The instruction set chosen when the library was loaded: "AVX-512", "AVX2" or "baseline".
std::string instructions();

void set_num_threads(int64_t threads);
int64_t num_threads();

}  // namespace srpo::cpu
