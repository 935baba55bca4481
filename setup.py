"""Builds srpo_kernels._C, the C++ extension; everything else about the package is in pyproject.toml.

The extension is compiled against the torch that will load it, so it needs `pip install --no-build-isolation`. Where
torch is not visible the package installs without it (the kernels then run in plain torch), unless SRPO_REQUIRE_EXT=1.

The CUDA part is compiled in where torch is a CUDA build and there is a CUDA toolkit, GPU or not; TORCH_CUDA_ARCH_LIST
says for which architectures, 8.0 or later (default 9.0a: Hopper alone).
"""

from __future__ import annotations

import os
import shutil
from glob import glob
from typing import Any

from setuptools import setup

SOURCES = ["csrc/ops.cpp", *sorted(glob("csrc/cpu/*.cpp"))]
CUDA_SOURCES = [*sorted(glob("csrc/cuda/*.cpp")), *sorted(glob("csrc/cuda/*.cu"))]
HEADERS = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.cuh", recursive=True))


def extension() -> dict[str, Any]:
    """setup() arguments that build the extension, or none where torch cannot be imported."""
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        how = "install torch, then `pip install --no-build-isolation .`"
        if os.environ.get("SRPO_REQUIRE_EXT") == "1":
            raise SystemExit(f"srpo: SRPO_REQUIRE_EXT=1, but torch is not importable here ({error}): {how}") from error
        print(f"srpo: torch is not importable here, so srpo_kernels._C is skipped; to build it, {how}")
        return {}
    cuda = torch.version.cuda is not None and CUDA_HOME is not None
    if cuda:
        architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0a")
        print(f"srpo: srpo_kernels._C for CPU and CUDA {torch.version.cuda} ({architectures})")
    else:
        missing = "torch is a CPU build" if torch.version.cuda is None else "no CUDA toolkit: set CUDA_HOME"
        print(f"srpo: srpo_kernels._C for CPU only ({missing})")
    # -Wno-psabi: vectors wider than the baseline's registers are only ever passed to inlined functions.
    flags = {"cxx": ["-std=c++20", "-O3", "-g0", "-fopenmp", "-Wall", "-Wno-psabi"], "nvcc": ["-std=c++20", "-O3"]}
    module = (CUDAExtension if cuda else CppExtension)(
        "srpo_kernels._C", SOURCES + CUDA_SOURCES * cuda, depends=HEADERS, extra_compile_args=flags,
        define_macros=[("SRPO_WITH_CUDA", f'"{torch.version.cuda}"')] * cuda, extra_link_args=["-fopenmp"])
    # Ninja compiles the files in parallel. Without it setuptools compiles one after the other; both skip what is built.
    build = BuildExtension.with_options(use_ninja=shutil.which("ninja") is not None)
    return {"ext_modules": [module], "cmdclass": {"build_ext": build}}


setup(**extension())
