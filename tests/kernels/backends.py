"""The compiled backends that take CPU tensors in this process: Triton's where its interpreter is on, by
test_kernels_triton.py. With SRPO_TEST_DEVICE=cuda tensors are on the GPU, and it is Triton alone."""

from __future__ import annotations

import os

import pytest
from srpo_kernels import linear

DEVICE = os.environ.get("SRPO_TEST_DEVICE", "cpu")
ON_CUDA = DEVICE == "cuda"
COMPILED = ["triton"] if ON_CUDA else ["cpp", "triton"] if os.environ.get("TRITON_INTERPRET") == "1" else ["cpp"]
# On a GPU the device itself looks at values, later, and a process in which it objected can do no more with it.
on_cpu = pytest.mark.skipif(ON_CUDA, reason="values are looked at on the host, or CPU threads count")


def set_chunk(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Logits that the linear variants hold at a time, wherever their tensors are."""
    for device in linear.CHUNK:
        monkeypatch.setitem(linear.CHUNK, device, elements)
