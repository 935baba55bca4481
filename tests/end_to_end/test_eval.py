"""`srpo eval` as a user starts it: on a model; on a run's checkpoint, killed and repeated, and on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from launches import Launch, survivors
from world import World


def evaluation(world: World, target: Path, out: str, *options: object, ranks: int = 1) -> Launch:
    return Launch("-m", "srpo", "eval", target, "--data", world.folder / "data" / "train.jsonl", "--out",
                  world.folder / out, "--workers", "1", *options, ranks=ranks, folder=world.folder)


def results(folder: Path) -> dict[str, Any]:
    """All that an evaluation found: its samples, and its figures without where the model is."""
    summary = json.loads((folder / "summary.json").read_text())
    summary["model"].pop("path")
    return {"summary": summary, **{f.name: pq.read_table(f).to_pylist() for f in sorted(folder.rglob("*.parquet"))
                                   if "model" not in f.parts}}


def test_a_model(world: World):
    output = evaluation(world, world.folder / "data" / "model", "of-model", "--template", "plain", "--samples", "2",
                        "--max-tokens", "8").succeed()
    assert "avg@2" in output and "majority@2" not in output
    summary = json.loads((world.folder / "of-model" / "summary.json").read_text())
    samples = pq.read_table(world.folder / "of-model" / "samples").to_pylist()
    assert summary["data"]["train"]["problems"] == 9 and len(samples) == 18
    assert all(s["tokens"] == 8 if s["truncated"] else s["tokens"] <= 8 for s in samples)
    assert len({s["response"] for s in samples}) > 9  # samples of a problem differ


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_if_nothing_had_happened(base: Path, world: World):
    step = min(int(f.name.removeprefix("step-")) for f in (base / "checkpoints").glob("step-*"))
    run = world.copy("evaluated", step=step)
    options = ("--samples", 32, "--chunk", 1)
    evaluation(world, run, "whole", *options).succeed()
    whole = results(world.folder / "whole")
    assert whole["summary"]["model"]["checkpoint"] == f"step-{step:08d}"
    assert 0 < whole["summary"]["data"]["train"]["avg@32"]["mean"] < 1

    done = world.folder / "resumed" / "samples"
    launch = evaluation(world, run, "resumed", *options)
    everyone = launch.when(lambda: any(done.glob("*.parquet"))).kill()
    assert survivors(everyone) == []
    before = {f: f.stat().st_mtime_ns for f in done.glob("*.parquet")}
    assert 0 < len(before) < 9
    evaluation(world, run, "resumed", *options).succeed()
    assert results(world.folder / "resumed") == whole
    assert all(f.stat().st_mtime_ns == written for f, written in before.items())

    evaluation(world, run, "shared", *options, ranks=2).succeed()
    assert results(world.folder / "shared") == whole
