"""Steps that sample on until enough groups are mixed, over two data-parallel ranks: also across `kill -9`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launches import metrics, query, same, survivors
from world import CODE, MATHS, World

SECTIONS: dict[str, Any] = {
    "batch": {"prompts": 2, "samples": 4}, "optimizer": {"lr": 1e-3},
    "resample": {"sampler": "dynamic", "drop_at": None}, "checkpoint": {"every": 1, "keep": 20},
    "stages": [{"name": "both", "domains": ["math", "code"], "until": "epochs", "epochs": 3}],
}
RESPONSES = 4 * (MATHS + CODE)


@pytest.mark.slow  # two runs of their own, and the base run
def test_a_step_trains_on_mixed_groups_and_resumes_bit_for_bit(base: Path, world: World) -> None:
    whole, killed = world.folder / "dynamic", world.folder / "dynamic-killed"
    world.train("dynamic", **SECTIONS, **world.warm()).succeed()
    assert query(whole, "SELECT COUNT(*) FROM rollouts GROUP BY epoch") == [(RESPONSES,)] * 3, "everyone once"
    steps = metrics(whole)[1:]
    refilled = [m for m in steps if m["rollout/rounds"] > 1]
    assert refilled and any(m["rollout/discarded"] > 0 for m in steps)
    for m in steps:
        groups, trained, mixed, learnt = query(
            whole, "SELECT COUNT(*), SUM(trained), SUM(mixed), SUM(mixed AND trained) FROM prompts "
                   f"WHERE step = {m['step']}")[0]
        assert trained == min(2, groups) and learnt == min(trained, mixed)
        assert m["rollout/discarded"] == 1 - trained / groups
        assert m["groups/all_correct"] + m["groups/all_wrong"] == pytest.approx(1 - mixed / groups), "over everything"
        assert m["rollout/rounds"] == 1 or m["time/step"] > m["time/rollout"] + m["time/reward"]
    assert any(mixed >= 2 and rounds > 1 for mixed, rounds in (
        (query(whole, f"SELECT SUM(mixed) FROM prompts WHERE step = {m['step']}")[0][0], m["rollout/rounds"])
        for m in steps)), "some step was completed by another round"
    assert all(m.get("rollout/logprob_diff_max", 0) < 1e-4 for m in steps)

    launch = world.train("dynamic-killed", **SECTIONS, **world.warm())
    moment = refilled[0]["step"]  # a checkpoint after a step of several rounds, and one to come back to before it
    launch.when(lambda: len(metrics(killed)) > moment + 1)
    assert survivors(launch.kill()) == []
    (killed / "checkpoints" / "latest").write_text(f"step-{moment - 1:08d}")
    world.train("dynamic-killed", **SECTIONS, **world.warm()).succeed()
    same(killed, whole)


@pytest.mark.slow
def test_tensor_parallel_ranks_sample_on_together(base: Path, world: World) -> None:
    stages = [{"name": "both", "domains": ["math", "code"], "until": "steps", "steps": 2}]
    world.train("dynamic-tensor", **SECTIONS | {"stages": stages}, **world.warm(), parallel={"tensor": 2}).succeed()
    _, *steps = metrics(world.folder / "dynamic-tensor")
    assert len(steps) == 2 and any(m["rollout/rounds"] > 1 for m in steps)
