"""A stage that is ended by hand while the run goes on, which then is killed and goes back: it ends at the same step."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from launches import Launch, metrics, query, same, survivors
from world import World

SECTIONS: dict[str, Any] = {
    "batch": {"prompts": 2, "samples": 4}, "optimizer": {"lr": 1e-3}, "checkpoint": {"every": 1, "keep": 50},
    "stages": [{"name": "sums", "domains": ["math"], "until": "steps", "steps": 40},
               {"name": "programs", "domains": ["math", "code"], "until": "steps", "steps": 3}],
}


@pytest.mark.slow
def test_a_stage_ended_by_hand_ends_at_the_same_step_again(world: World) -> None:
    run, undisturbed = world.folder / "by-hand", world.folder / "by-hand-undisturbed"
    launch = world.train("by-hand", ranks=1, **SECTIONS).when(lambda: len(metrics(run)) > 2)
    told = Launch("-m", "srpo", "stage", run, "next", ranks=1, folder=world.folder).succeed()
    assert f"{run}: stage 'sums' ends after the step that it is making; then stage 'programs' begins" in told
    launch.when(lambda: metrics(run)[-1].get("stage") == "programs")
    assert survivors(launch.kill()) == []
    (taken,) = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    assert query(run, "SELECT step, detail FROM events WHERE kind = 'stage'") == [
        (taken["step"], f"sums -> programs: by hand after {taken['step']} steps")]
    (run / "checkpoints" / "latest").write_text(f"step-{taken['step'] - 1:08d}")
    world.train("by-hand", ranks=1, **SECTIONS).succeed()

    undisturbed.mkdir()
    shutil.copy(run / "stages.jsonl", undisturbed)
    shutil.copytree(run / "warm", undisturbed / "warm")
    world.train("by-hand-undisturbed", ranks=1, **SECTIONS).succeed()
    same(run, undisturbed)
    assert [m["stage"] for m in metrics(run)[1:]] == ["sums"] * taken["step"] + ["programs"] * 3
