"""Builds srpo_kernels._C, the C++ extension; everything else about the package is in pyproject.toml.

The extension is compiled against the torch that will load it, so it needs `pip install --no-build-isolation`. Where
torch is not visible the package installs without it (the kernels then run in plain torch), unless SRPO_REQUIRE_EXT=1.
"""

from __future__ import annotations

import os
from glob import glob
from typing import Any

from setuptools import setup

SOURCES = ["csrc/ops.cpp", *sorted(glob("csrc/cpu/*.cpp"))]
HEADERS = sorted(glob("csrc/cpu/*.h"))


def extension() -> dict[str, Any]:
    """setup() arguments that build the extension, or none where torch cannot be imported."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        how = "install torch, then `pip install --no-build-isolation .`"
        if os.environ.get("SRPO_REQUIRE_EXT") == "1":
            raise SystemExit(f"srpo: SRPO_REQUIRE_EXT=1, but torch is not importable here ({error}): {how}") from error
        print(f"srpo: torch is not importable here, so srpo_kernels._C is skipped; to build it, {how}")
        return {}
    # -Wno-psabi: vectors wider than the baseline's registers are only ever passed to inlined functions.
    flags = ["-std=c++20", "-O3", "-g0", "-fopenmp", "-Wall", "-Wno-psabi"]
    module = CppExtension("srpo_kernels._C", SOURCES, depends=HEADERS, extra_compile_args=flags,
                          extra_link_args=["-fopenmp"])
    # Without ninja setuptools compares file times itself and skips a build that is up to date.
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=False)}}


setup(**extension())
