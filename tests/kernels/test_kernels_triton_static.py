"""The Triton kernels as compiled for an H100, without one: no spills, 16-byte accesses, each logit moved once a sweep.

In a process of its own, as what other tests ask of Triton (its interpreter) is asked of a whole process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("static") / "out.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.static_triton", "--dtypes", "bf16", "fp32", "--out",
               str(out)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads(out.read_text())


def test_nothing_spills(measured: dict[str, Any]) -> None:
    for kernel in (*measured["kernels"], measured["group_advantage"]):
        assert kernel["spills"] == 0 and kernel["local_bytes"] == 0, kernel


def test_every_program_is_resident(measured: dict[str, Any]) -> None:
    """The grid is persistent: programs that waited for a place would take their rows after all others' were done."""
    for kernel in measured["kernels"]:
        assert kernel["resident_programs"] >= kernel["programs"], kernel


def test_accesses_are_16_bytes_wide(measured: dict[str, Any]) -> None:
    """All but single values of a row: its token, its statistics, its target's logit."""
    assert len(measured["kernels"]) >= 14
    for kernel in measured["kernels"]:
        wide = {what: count for what, count in kernel["accesses"].items() if "16 bytes" in what}
        assert sum(wide.values()) >= 2 * kernel["tile"][0], kernel
        single = {what: count for what, count in kernel["accesses"].items() if what not in wide}
        assert all("default" in what for what in single) and sum(single.values()) <= 16, kernel
    policies = {(k["kernel"], k["dtype"]): k["l2_policies"] for k in measured["kernels"]}
    assert policies["policy loss", "bf16"] == ["L2::evict_first", "L2::evict_last"]


def test_sweeps_stay_far_from_the_issue_limit(measured: dict[str, Any]) -> None:
    """At 3 TB/s an H100 has time for 19 instructions a bfloat16 logit and sweep; fp32 has twice that."""
    swept = [k for k in measured["kernels"] if k["kernel"] != "scale rows"]
    assert all(k["instructions_per_logit"] and max(k["instructions_per_logit"]) < 15 for k in swept), swept
    assert all(len(k["instructions_per_logit"]) == 2 for k in swept if k["kernel"] == "policy loss")


@pytest.mark.parametrize(("kernel", "read", "written"), [
    ("statistics", 1, 0), ("statistics gradient, in place", 1, 1), ("statistics gradient of zero, in place", 0, 1),
    ("policy loss, in place", 2, 1), ("policy loss, forward", 1, 0), ("policy loss, masked, in place", 0, 1),
    ("scale rows", 1, 1), ("scale rows by 1", 0, 0)])
def test_each_logit_is_moved_once_a_sweep(measured: dict[str, Any], kernel: str, read: int, written: int) -> None:
    """Single values of a row, the target's, are 1/V of a logit each."""
    found = [t for t in measured["traffic"] if t["kernel"] == kernel]
    assert len(found) == 2
    for t in found:
        assert t["logits_read"] == pytest.approx(read, abs=1e-4) and t["logits_written"] == pytest.approx(
            written, abs=1e-4), t


def test_rows_of_the_policy_loss_fit_in_the_cache(measured: dict[str, Any]) -> None:
    assert all(live["l2_share"] < 0.8 for live in measured["live_rows"] if live["dtype"] == "bf16")
