"""Which of vLLM's ways to run a model an engine is to take."""

from __future__ import annotations

import os

import torch
import torch._dynamo
import torch.distributed as dist


def choose_runner(pipeline: int = 1) -> bool:
    """Call it before an engine of so many pipeline stages is made. Returns whether it runs on CUDA."""
    if not torch.cuda.is_available():
        # vLLM compiles one line of its sampler: ten seconds of C++ compiler for nothing here.
        torch._dynamo.config.disable = True
        return False
    # Only for top-k and top-p without seeds and log-probs; vLLM 0.24 imports the package all the same.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    if pipeline == 1:
        # The second runner, whose sampler hashes a request's seed in the kernel. The first one has a torch generator
        # and a launch a request; vLLM 0.24 takes it for Qwen2, and all versions for pipelines under torchrun.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    return True


def worker() -> str:
    """vLLM's worker_cls."""
    launched = not torch.cuda.is_available() and dist.is_initialized()
    return "srpo.rollout.cpu_worker.Worker" if launched else "auto"
