"""The C++ extension: loading it registers torch.ops.srpo."""

from __future__ import annotations

from srpo_kernels import _C, ops

build_info = _C.build_info
set_num_threads = _C.set_num_threads
get_num_threads = _C.get_num_threads

ops.register("srpo")
