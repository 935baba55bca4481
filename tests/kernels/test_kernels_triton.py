"""The Triton kernels: on the GPU where there is one, else under Triton's interpreter.

The interpreter has to be chosen before Triton is imported, which other tests may have done: the tests themselves are in
triton_checks.py, which then runs in a process of its own, with what the tests of the other backends ask of this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    from triton_checks import *  # noqa: F403
else:
    @pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
    def test_under_the_interpreter(which: str) -> None:
        here = Path(__file__)
        checks = [str(here.with_name(name)) for name in (
            "triton_checks.py", "test_kernels_one_pass.py", "test_kernels_logprob.py", "test_kernels_linear.py",
            "test_kernels_compile.py")]
        options = ["-p", "no:cacheprovider", "--tb=short", "-k", "triton", "-m", which]
        command = [sys.executable, "-m", "pytest", *options, *checks]
        run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
