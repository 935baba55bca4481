// The operators of srpo_kernels: their schemas (the table of contents) and the Python module that loads them.
//
// A row's log-probability and entropy follow from four statistics of its logits x at temperature T:
//   maximum  m = max x_j            (raw logits: x_y - m is then exact under a large common offset)
//   sum      s = sum exp((x_j - m) / T)
//   term     t = sum exp((x_j - m) / T) * (x_j - m) / T
//   target   x_y, or 0 where token y is not among this tensor's columns
// which merge across vocabulary shards: see kernels/srpo_kernels/logprob.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/logprob.h"
#include "cpu/policy_loss.h"

#define SRPO_LOSS_INPUTS                                                                                        \
  "Tensor tokens, Tensor advantages, Tensor weights, Tensor? old_logprobs, Tensor? ref_logprobs, "              \
  "Tensor? rollout_logprobs, float temperature, int columns, float clip_low, float clip_high, float dual_clip, " \
  "bool cispo, int kl, float kl_coef, float entropy_coef, float tis_cap"

TORCH_LIBRARY(srpo, m) {
  // logits [N, V] float, bfloat16 or half; tokens [N] int64, local to this tensor's columns, outside [0, columns) where
  // the token is not here; only the first `columns` columns take part. Returns [N, 4] float.
  m.def(
      "logprob_statistics(Tensor logits, Tensor tokens, float temperature, int columns, "
      "bool inplace_backward=False) -> Tensor");
  // The gradient with respect to the logits; that of the maximum is not used (nothing depends on its choice).
  m.def(
      "logprob_statistics_backward(Tensor grad, Tensor statistics, Tensor logits, Tensor tokens, float temperature, "
      "int columns) -> Tensor");
  // The same, written over the logits.
  m.def(
      "logprob_statistics_backward_(Tensor grad, Tensor statistics, Tensor(a!) logits, Tensor tokens, "
      "float temperature, int columns) -> ()");
  // The token-level policy loss [N] and, in the same pass, its gradient [N, V] (of no rows unless needs_grad). advantages,
  // weights and the log-probs are [N] float; a row of weight 0 is not read and gets a gradient of 0. rows [N, 5] float:
  // log-prob, entropy, policy term, KL estimate (kl: 1, 2, 3 for k1, k2, k3), whether it was clipped. dual_clip: inf for
  // none. rollout_logprobs: only where tis_cap applies.
  m.def("policy_loss_rows(Tensor logits, " SRPO_LOSS_INPUTS ", bool needs_grad) -> (Tensor loss, Tensor rows, Tensor grad)");
  // The same, the gradient written over the logits.
  m.def("policy_loss_rows_(Tensor(a!) logits, " SRPO_LOSS_INPUTS ") -> (Tensor loss, Tensor rows)");
  // Multiplies row n of [N, V] by scale[n] (float); a row whose scale is 1 is not touched.
  m.def("scale_rows_(Tensor(a!) matrix, Tensor scale) -> ()");
}

TORCH_LIBRARY_IMPL(srpo, CPU, m) {
  m.impl("logprob_statistics", &srpo::cpu::logprob_statistics);
  m.impl("logprob_statistics_backward", &srpo::cpu::logprob_statistics_backward);
  m.impl("logprob_statistics_backward_", &srpo::cpu::logprob_statistics_backward_);
  m.impl("policy_loss_rows", &srpo::cpu::policy_loss_rows);
  m.impl("policy_loss_rows_", &srpo::cpu::policy_loss_rows_);
  m.impl("scale_rows_", &srpo::cpu::scale_rows_);
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Registers torch.ops.srpo; build information and thread control.";
  m.def("build_info", [] {
    pybind11::dict info;
    info["torch"] = TORCH_VERSION;
    info["compiler"] = __VERSION__;
    info["instructions"] = srpo::cpu::instructions();
#ifdef SRPO_WITH_CUDA
    info["cuda"] = SRPO_WITH_CUDA;
#else
    info["cuda"] = "no";
#endif
    info["parallel"] = at::get_parallel_info().find("OpenMP") != std::string::npos ? "OpenMP" : "native";
    return info;
  }, "What the extension was built with, and the instruction set it runs on here.");
  m.def("set_num_threads", &srpo::cpu::set_num_threads, pybind11::arg("threads"),
        "Cap the threads of these operators; 0: as many as torch.get_num_threads().");
  m.def("get_num_threads", &srpo::cpu::num_threads, "Threads these operators would use now.");
}
