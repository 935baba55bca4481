"""Each instruction set that the extension chooses among at run time, compiled by itself and run on this processor."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
WRAPPER = """
#include "{root}/csrc/cpu/segment.cpp"
using namespace srpo::cpu;
extern "C" void statistics(const {type}* x, long count, float octaves, double* out) {{
  const Statistics s = segment_statistics(x, count, octaves);
  out[0] = s.maximum, out[1] = s.sum, out[2] = s.term;
}}
extern "C" void gradient(const {type}* x, long count, float m, float octaves, float a, float b, {type}* out) {{
  segment_gradient(x, count, m, octaves, a, b, out);
}}
"""
TYPES = {torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half"}
FEATURES = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}


def processor_has(feature: str) -> bool:
    return feature in Path("/proc/cpuinfo").read_text().split()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("architecture", FEATURES)
def test_architecture(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    if not processor_has(FEATURES[architecture]):
        pytest.skip(f"this processor has no {FEATURES[architecture]}")
    source, library = tmp_path / "segment.cpp", tmp_path / "segment.so"
    source.write_text(WRAPPER.format(root=ROOT, type=TYPES[dtype]))
    includes = [flag for path in include_paths() for flag in ("-I", path)]
    flags = ["-std=c++20", "-O3", "-shared", "-fPIC", "-Wno-psabi", "-DSRPO_CLONES=", f"-march={architecture}"]
    subprocess.run(["g++", *flags, *includes, str(source), "-o", str(library)], check=True)
    compiled = ctypes.CDLL(str(library))
    for count in (1, 31, 32, 33, 64, 100, 4096, 4099, 8192):
        x = (torch.randn(count) * 5).to(dtype)
        x[count // 2 :: 7] = -torch.inf
        x[0] = 2.0
        octaves, constant, slope = 1.3, 0.25, -0.125
        result = torch.zeros(3, dtype=torch.float64)
        compiled.statistics(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(count), ctypes.c_float(octaves),
                            ctypes.c_void_p(result.data_ptr()))
        d = (x.double() - x.double().max()) * torch.tensor(octaves).double()
        e = torch.exp2(d)
        d = d.masked_fill(e == 0, 0)
        want = torch.stack([x.double().max(), e.sum(), (e * d).sum()])
        torch.testing.assert_close(result, want, rtol=1e-6, atol=1e-6)
        out = torch.empty_like(x)
        compiled.gradient(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(count), ctypes.c_float(float(x.max())),
                          ctypes.c_float(octaves), ctypes.c_float(constant), ctypes.c_float(slope),
                          ctypes.c_void_p(out.data_ptr()))
        bound = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
        torch.testing.assert_close(out.double(), e * (constant + slope * d), rtol=bound, atol=bound / 16)
        assert (out[x == -torch.inf] == 0).all()
