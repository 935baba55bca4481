"""What happens without the extension, without torch, and what status() says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import srpo_kernels
import torch
from srpo_kernels import extension, ops, reference, status

ROOT = Path(__file__).parents[2]
OPS = {"group_advantage", "token_logprobs", "policy_loss", "grpo_loss", "linear_token_logprobs", "linear_policy_loss"}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT / "kernels"), os.environ.get("PYTHONPATH"))))
    clean = {name: value for name, value in os.environ.items() if name != "SRPO_REQUIRE_EXT"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment})


def test_extension_is_used_and_says_so() -> None:
    table = status()
    assert set(table) == OPS and table["token_logprobs"].backend == "cpp"
    info = extension.build_info()
    assert info["instructions"] in table["policy_loss"].reason
    assert info["instructions"] in ("AVX-512", "AVX2", "baseline") and info["parallel"] == "OpenMP"


def test_status_of_any_name_of_a_device() -> None:
    assert status("cpu") == status(torch.device("cpu")) == status("cpu:0") and status("cuda") == status("cuda:1")
    assert status("xpu")["policy_loss"] == ("torch", "no kernels for xpu")


@pytest.mark.parametrize("name", ops.SCHEMAS)
def test_schemas_of_both_sets_of_operators_are_one(name: str) -> None:
    """They are called by position: csrc/ops.cpp must say the same as ops.py."""
    wanted = torch._C.parse_schema(f"srpo::{name}{ops.SCHEMAS[name]}")
    assert getattr(torch.ops.srpo, name).default._schema == wanted


def test_reference_has_every_function() -> None:
    assert set(reference.__all__) == OPS
    assert set(srpo_kernels.__all__) >= OPS


MISSING = "import sys; sys.modules['srpo_kernels._C'] = None; import logging; logging.basicConfig(level='INFO');"


def test_missing_extension_falls_back_and_logs_why() -> None:
    result = python(MISSING + "import torch, srpo_kernels as k; print(k.status()['token_logprobs'].backend);"
                    "print(k.token_logprobs(torch.zeros(1, 4), torch.tensor([1])).exp().item())")
    assert result.stdout.split() == ["torch", "0.25"], result.stderr
    assert "srpo_kernels._C cannot be imported" in result.stderr and "--no-build-isolation" in result.stderr


def test_required_extension_is_an_error() -> None:
    result = python(MISSING + "import srpo_kernels", SRPO_REQUIRE_EXT="1")
    assert result.returncode != 0
    assert "ImportError: SRPO_REQUIRE_EXT=1, but srpo_kernels._C cannot be imported" in result.stderr


SETUP = "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--name']; exec(open('setup.py').read())"


@pytest.mark.parametrize("required", ["0", "1"])
def test_setup_without_torch(required: str) -> None:
    """A light install skips the extension in words; a required one stops."""
    result = python(SETUP, SRPO_REQUIRE_EXT=required)
    if required == "1":
        assert result.returncode != 0 and "SRPO_REQUIRE_EXT=1, but torch is not importable" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert "srpo_kernels._C is skipped" in result.stdout


def test_kernels_import_nothing_of_the_trainer() -> None:
    result = python("import sys, srpo_kernels; print([m for m in sys.modules if m == 'srpo' or m.startswith('srpo.')])")
    assert result.stdout.strip() == "[]", result.stderr
