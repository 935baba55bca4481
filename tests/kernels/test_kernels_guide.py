"""docs/kernels.md and docs/examples: what outside users copy runs as it stands."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "kernels.md"


def test_blocks_of_the_guide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In order and in one namespace, as a reader would type them. Compiled ahead of time, but not to machine code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    text = GUIDE.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) >= 9
    names: dict[str, object] = {}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(GUIDE), "exec"), names)
    printed = capsys.readouterr().out
    assert "GSPO" in printed and "linear_policy_loss" in printed


def test_links_of_the_guide_lead_somewhere() -> None:
    text = GUIDE.read_text()
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("http"):
            assert (GUIDE.parent / link).exists(), link
    for path in re.findall(r"`((?:docs|srpo|tests)/[\w/.]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: requirements/bench.txt")
def test_trl_trainer_with_our_loss() -> None:
    """The example compares every loss it takes over with TRL's own, and asserts that the reward rises."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "kernels"), "HF_HUB_OFFLINE": "1"}
    script = ROOT / "docs" / "examples" / "trl_grpo.py"
    run = subprocess.run([sys.executable, "-W", "ignore", script, "--steps", "30"], env=environment,
                         capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("gradients differ by") == 7 and "reward, means of 10 steps" in run.stdout
