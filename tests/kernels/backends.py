"""The compiled backends that take CPU tensors in this process: Triton's where its interpreter is on, by
test_kernels_triton.py. With SRPO_TEST_DEVICE=cuda tensors are on the GPU, and it is Triton alone."""

from __future__ import annotations

import os

ON_CUDA = os.environ.get("SRPO_TEST_DEVICE") == "cuda"
COMPILED = ["triton"] if ON_CUDA else ["cpp", "triton"] if os.environ.get("TRITON_INTERPRET") == "1" else ["cpp"]
