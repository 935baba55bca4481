"""The compiled backends that take CPU tensors in this process: Triton's where its interpreter is on, by
test_kernels_triton.py."""

from __future__ import annotations

import os

COMPILED = ["cpp", "triton"] if os.environ.get("TRITON_INTERPRET") == "1" else ["cpp"]
