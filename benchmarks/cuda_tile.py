"""The CUDA kernels of csrc/cuda built by nvcc with one tile or another, and called past torch's operators."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_host import tool
from benchmarks.static_cuda import SOURCES, target, with_tile

SOURCE = """
#include "logprob.cu"

using namespace srpo::cuda;

template <typename Body>
int64_t with_type(int element_bytes, const Body& body) {
  return element_bytes == 4 ? body(static_cast<float*>(nullptr)) : body(static_cast<BFloat16*>(nullptr));
}

static Shape shape_of(int element_bytes, int64_t rows, int columns, double temperature, int multiprocessors) {
  return make_shape(rows, columns, columns, columns, element_bytes, temperature, multiprocessors);
}

extern "C" int64_t scratch(int element_bytes, int64_t rows, int columns, double temperature, int multiprocessors) {
  return scratch_bytes(shape_of(element_bytes, rows, columns, temperature, multiprocessors));
}

extern "C" int64_t statistics(
    int element_bytes, int64_t rows, int columns, double temperature, int multiprocessors, const void* logits,
    const int64_t* tokens, void* partials, float* out, cudaStream_t stream) {
  const Shape shape = shape_of(element_bytes, rows, columns, temperature, multiprocessors);
  return with_type(element_bytes, [&]<typename T>(T*) {
    return launch_statistics(static_cast<const T*>(logits), tokens, shape, partials, out, stream);
  });
}

extern "C" int64_t gradient(
    int element_bytes, int64_t rows, int columns, double temperature, int multiprocessors, void* logits,
    const int64_t* tokens, const float* grad, const float* statistics, cudaStream_t stream) {
  const Shape shape = shape_of(element_bytes, rows, columns, temperature, multiprocessors);
  return with_type(element_bytes, [&]<typename T>(T*) {
    return launch_gradient(
        grad, statistics, static_cast<const T*>(logits), tokens, shape, static_cast<T*>(logits), columns, stream);
  });
}
"""


class CudaTile(NamedTuple):
    """Tile of csrc/cuda/shape.h."""

    threads: int
    unroll: int
    blocks: int
    chosen_by: str


def in_shape_h() -> CudaTile:
    found = re.search(r"#define SRPO_TILE \{(\d+), (\d+), (\d+)\}", (SOURCES / "shape.h").read_text())
    assert found, "csrc/cuda/shape.h has no SRPO_TILE"
    threads, unroll, blocks = map(int, found.groups())
    return CudaTile(threads, unroll, blocks, chosen_by="csrc/cuda/shape.h")


class Library(NamedTuple):
    functions: ctypes.CDLL
    registers: int
    """The most of any kernel."""
    spills: int
    """Bytes."""


@functools.cache
def build(tile: CudaTile, arch: str) -> Library:
    """For an architecture as "9.0". Takes nvcc some seconds; raises CalledProcessError with its messages."""
    nvcc = tool("nvcc")
    assert nvcc, "the CUDA kernels need nvcc"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, library = folder / "tile.cu", folder / "tile.so"
        source.write_text(SOURCE)
        flags = with_tile(", ".join(map(str, tile[:-1])), folder)
        said = subprocess.run(
            [nvcc, "-std=c++20", "-O3", target(arch), "-Xptxas", "-v", "-shared", "-Xcompiler", "-fPIC", *flags,
             f"-I{SOURCES}", "-o", str(library), str(source)], check=True, capture_output=True, text=True).stderr
        functions = ctypes.CDLL(str(library), mode=os.RTLD_LOCAL)
    shape = [ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_double, ctypes.c_int]
    for name, pointers in (("scratch", 0), ("statistics", 5), ("gradient", 5)):
        getattr(functions, name).argtypes = shape + [ctypes.c_void_p] * pointers
        getattr(functions, name).restype = ctypes.c_int64
    return Library(functions, max(map(int, re.findall(r"Used (\d+) registers", said))),
                   sum(map(int, re.findall(r"(\d+) bytes spill stores", said))))


def logprob(library: Library, logits: Tensor, tokens: Tensor, grad: Tensor, temperature: float,
            multiprocessors: int) -> Tensor:
    """Statistics [N, 4] of contiguous float32 or bfloat16 logits [N, V], which then become their gradient."""
    rows, columns = logits.shape
    shape = (logits.element_size(), rows, columns, temperature, multiprocessors)
    stream = torch.cuda.current_stream(logits.device).cuda_stream
    partials = torch.empty(library.functions.scratch(*shape), dtype=torch.uint8, device=logits.device)
    out = torch.empty((rows, 4), device=logits.device)
    error = library.functions.statistics(*shape, logits.data_ptr(), tokens.data_ptr(), partials.data_ptr(),
                                         out.data_ptr(), stream)
    error = error or library.functions.gradient(*shape, logits.data_ptr(), tokens.data_ptr(), grad.data_ptr(),
                                                out.data_ptr(), stream)
    if error:
        raise RuntimeError(f"launching the CUDA kernels failed with error {error}")
    return out
