"""The benchmarks that gpu_check adds, on CPU and a tiny model: they run, and tell right weights from wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launches import Launch

from benchmarks import compare
from srpo.data import toy

SMALL = ["batch.prompts=4", "batch.samples=4", "batch.micro_batch=8", "rollout.kv_cache_gib=0.03"]


@pytest.mark.slow
def test_the_canary_tells_right_weights_from_wrong_ones(tmp_path: Path) -> None:
    out = tmp_path / "new.json"
    Launch("-m", "benchmarks.bench_canary", *SMALL, "--steps", "2", "--out", out, ranks=2, folder=tmp_path).succeed()
    document = json.loads(out.read_text())
    right, *wrong = document["distributions"].values()
    assert len(right["max_of_steps"]) == 2 and right["tokens"] > 16
    assert 0 < right["worst prompt"] < right["max"] < 1e-4
    assert all(found["worst prompt"] > document["threshold"] for found in wrong)
    assert compare.main([str(out), str(out)]) == 0


@pytest.mark.slow
def test_memory_is_read_in_every_step(tmp_path: Path) -> None:
    out = tmp_path / "new.json"
    launch = Launch("-m", "benchmarks.bench_memory", *SMALL, "--steps", "4", "--out", out, ranks=1, folder=tmp_path)
    code = launch.end()
    document = json.loads(out.read_text())
    assert code == bool(document["wrong"])  # so few steps are no measurement
    assert len(document["steps"]) == 4
    for step in document["steps"]:
        assert step["aliased"] == document["parameters"] and step["moved"] == 0 < step["resident"]


@pytest.mark.slow
def test_trl_on_the_same_configuration(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    toy.write(tmp_path / "data", seed=1)
    out = tmp_path / "new.json"
    Launch("-m", "benchmarks.bench_trl", *SMALL, f"model.path={tmp_path}/data/model",
           f"data.train=[{tmp_path}/data/train.jsonl]", "--steps", "2", "--out", out, ranks=1,
           folder=tmp_path).succeed()
    document = json.loads(out.read_text())
    assert len(document["steps"]) == 2 and document["tokens_per_s"] > 0
    assert all(16 <= step["tokens"] <= 16 * 32 for step in document["steps"])
