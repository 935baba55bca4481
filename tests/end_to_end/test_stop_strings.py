"""Responses that end with a stop string, on tensor-parallel ranks and with responses that go on in the next step."""

from __future__ import annotations

import pytest
from launches import ended_with_the_answer, metrics
from world import World

from srpo import samples


@pytest.mark.slow  # without oversampling: test_layouts.py
def test_responses_end_with_the_answer(world: World) -> None:
    world.train("stopped", parallel={"tensor": 2}, rollout={"stop": ["</answer>"], "oversample": 2.0},
                algorithm={"tis_cap": 2.0}, batch={"prompts": 2}, resample={"sampler": "plain", "drop_at": None},
                stages=[{"name": "both", "domains": ["math", "code"], "until": "steps", "steps": 4}]).succeed()
    run = world.folder / "stopped"
    ended_with_the_answer(row for batch in samples.read_all(run) for row in batch.to_pylist())
    _, *steps = metrics(run)
    assert any(m["rollout/stale"] > 0 for m in steps) and all(
        m.get("rollout/logprob_diff_max", 0) < 1e-4 for m in steps if m.get("rollout/logprob_diff_max") is not None)
