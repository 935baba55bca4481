"""Steps that begin twice the groups that they train on, and carry on with the others: also across `kill -9`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launches import metrics, query, same, survivors, trace
from world import CODE, MATHS, World

SECTIONS: dict[str, Any] = {
    "batch": {"prompts": 2, "samples": 4}, "rollout": {"oversample": 2.0}, "algorithm": {"tis_cap": 2.0},
    "optimizer": {"lr": 1e-3}, "resample": {"sampler": "plain", "drop_at": None},
    "checkpoint": {"every": 1, "keep": 20},
    "stages": [{"name": "both", "domains": ["math", "code"], "until": "epochs", "epochs": 2}],
}


def carried(run: Path) -> dict[int, int]:
    """Unfinished responses with tokens in each checkpoint."""
    found = {}
    for file in run.glob("checkpoints/step-*/controller.json"):
        saved = json.loads(file.read_text())
        groups = saved["controller"].get("responses", {}).values()
        found[saved["step"]] = sum(bool(s["tokens"]) and not s["finished"] for g in groups for s in g.values())
    return found


@pytest.fixture(scope="module")
def whole(base: Path, world: World) -> Path:
    """A run that nothing disturbed."""
    world.train("oversampled", **SECTIONS, **world.warm()).succeed()
    return world.folder / "oversampled"


def moments(run: Path) -> list[int]:
    """Steps of an undisturbed run that left unfinished responses behind."""
    held = carried(run)
    assert held[max(held)] == 0
    return [step for step in sorted(held) if step > 1 and held[step]]


def test_unfinished_groups_go_on_in_the_next_step(whole: Path, world: World) -> None:
    for epoch in (1, 2):  # everyone once, however often it was begun
        seen = query(whole, f"SELECT prompt_id, COUNT(*) FROM rollouts WHERE epoch = {epoch} GROUP BY prompt_id")
        assert len(seen) == MATHS + CODE and {count for _, count in seen} == {4}
    steps = metrics(whole)[1:]
    assert len(steps) == 10 and any(m["rollout/stale"] > 0 for m in steps)
    assert all(m.get("rollout/logprob_diff_max", 0) < 1e-4 for m in steps), "tokens of this step's own policy"


def test_unfinished_groups_go_on_after_a_stop(whole: Path, world: World) -> None:
    """As after a kill two steps later: rows and metrics beyond the checkpoint are there, and taken back."""
    run = world.copy("oversampled-resumed", step=moments(whole)[0], of="oversampled")
    world.train("oversampled-resumed", **SECTIONS, **world.warm()).succeed()
    same(run, whole)


@pytest.mark.slow
def test_unfinished_groups_go_on_after_a_kill(whole: Path, world: World) -> None:
    killed = world.folder / "oversampled-killed"
    launch = world.train("oversampled-killed", **SECTIONS, **world.warm())
    moment = moments(whole)[0]
    launch.when(lambda: len(metrics(killed)) > moment + 1 and moment in carried(killed))
    assert survivors(launch.kill()) == []
    (killed / "checkpoints" / "latest").write_text(f"step-{moment:08d}")
    world.train("oversampled-killed", **SECTIONS, **world.warm()).succeed()
    same(killed, whole)

    (killed / "checkpoints" / "latest").write_text(f"step-{moment:08d}")
    changed = SECTIONS | {"batch": {"prompts": 2, "samples": 2}}
    assert "batch.samples = 2: the checkpoint holds groups of 4 that were begun" in world.train(
        "oversampled-killed", ranks=1, **changed, **world.warm()).fail()
    other = world.folder / "other.jsonl"
    other.write_text('{"id": "other", "domain": "math", "prompt": "1+1=", "answer": "2"}\n')
    stages = [SECTIONS["stages"][0] | {"domains": ["math"]}]
    changed = SECTIONS | {"data": {"train": [str(other)]}, "stages": stages}
    assert "data.train or seed" in world.train(
        "oversampled-killed", ranks=1, **changed, **world.warm()).fail()
    assert trace(killed)["ledger"] == trace(whole)["ledger"], "a refusal leaves everything as it is"


@pytest.mark.slow
def test_tensor_parallel_ranks_stop_together(base: Path, world: World) -> None:
    stages = [{"name": "both", "domains": ["math", "code"], "until": "steps", "steps": 3}]
    world.train("oversampled-tensor", **SECTIONS | {"stages": stages}, **world.warm(), parallel={"tensor": 2}).succeed()
    _, *steps = metrics(world.folder / "oversampled-tensor")
    assert len(steps) == 3 and any(m["rollout/stale"] > 0 for m in steps)
