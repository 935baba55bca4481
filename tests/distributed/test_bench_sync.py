"""bench_sync runs, counts its bytes and prints plans; its times are not looked at here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PYTHONPATH, ROOT
from models import MODELS

from benchmarks import bench_sync


def test_it_measures(tmp_path: Path) -> None:
    MODELS["qwen2"]().save_pretrained(tmp_path)
    out = tmp_path / "new" / "sync.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.bench_sync", "--model", tmp_path / "config.json"]
    env = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--ranks", "2", "--rounds", "2", "--out", out], cwd=ROOT, env=env,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    document = json.loads(out.read_text())
    moved = {row["case"]: row["bytes"] for row in document["rows"]}
    assert moved.keys() == {"1x2->2x1 on 2", "1x2->1x1 on 2", "2x1->1x1 on 2", "1x1->2x1 on 2"}
    assert moved["1x1->2x1 on 2"] == 0 < moved["1x2->2x1 on 2"] < moved["1x2->1x1 on 2"]
    for row in document["rows"]:
        assert row["bytes"] == row["bound"] and row["staged"] <= row["largest_slice"]
        assert (row["ratios"].keys() == {"to_link", "to_bound"}) == (row["bytes"] > 0)
        assert row["case"] in done.stdout


def test_it_plans(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    MODELS["qwen2"]().save_pretrained(tmp_path)
    model = ["--model", str(tmp_path / "config.json")]
    bench_sync.main([*model, "--layout", "4x2", "--to", "2x1", "--world", "16"])
    assert capsys.readouterr().out.startswith("reshard plan 4x2 -> 2x1 (tensor x pipeline), ranks 0 to 7, 2 bytes")
    for arguments, message in ((["--layout", "4x2", "--to", "3x1", "--world", "24"], "3x1: 8 heads and a width of 48"),
                               (["--layout", "4x2", "--to", "2x1", "--world", "4"], "4x2: 4 ranks do not divide"),
                               (["--layout", "4x2", "--to", "2"], "'2': write it as TENSORxPIPELINE"),
                               (["--layout", "4x2"], "--layout and --to go together")):
        with pytest.raises(SystemExit):
            bench_sync.main([*model, *arguments])
        assert message in capsys.readouterr().err
