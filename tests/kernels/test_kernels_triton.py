"""The Triton kernels: on the GPU where there is one, else under Triton's interpreter.

The interpreter has to be chosen before Triton is imported, which other tests may have done: the tests themselves are in
triton_checks.py, which then runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    from triton_checks import *  # noqa: F403
else:
    def test_under_the_interpreter() -> None:
        checks = Path(__file__).with_name("triton_checks.py")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", str(checks)]
        run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
