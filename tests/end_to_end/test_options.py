"""The parts of the loss that the recipe leaves off, on two pipeline stages and on two data-parallel ranks, and memory
that a run frees in between, on in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launches import metrics, moved, same
from world import World

TRAINER: dict[str, Any] = {
    "algorithm": {"kl": "k3", "kl_coef": 0.01, "dual_clip": 3.0, "entropy_coef": 0.001, "aggregate": "sequence",
                  "truncated": "shape"},
    "reward": {"workers": 1, "timeout": 60.0, "language": 0.1, "overlong": {"start": 20}},
    "parallel": {"pipeline": 2},
}
ROLLOUT: dict[str, Any] = {
    "algorithm": {"kl": "k2", "kl_coef": 0.01, "old_logprobs": "rollout", "tis_cap": 2.0, "aggregate": "constant",
                  "advantage": "none"},
}


@pytest.mark.parametrize("sections", [TRAINER, pytest.param(ROLLOUT, marks=pytest.mark.slow)],
                         ids=["trainer", "rollout"])
def test_two_updates_a_batch_with_a_reference(world: World, base: Path, sections: dict[str, Any],
                                              request: pytest.FixtureRequest) -> None:
    """The reference is the starting policy, at which KL is 0 but for rounding; the canary looks at the first update of
    a step alone, the policy being another one at the second."""
    run = f"options-{request.node.callspec.id}"
    plan = world.plan((1, 2), (2, 1)) if "parallel" in sections else world.plan((1, 1), (1, 1))
    output = world.train(run, **world.warm(), **sections, batch={"updates": 2, "micro_batch_tokens": 64},
                         optimizer={"lr": 1e-4}, rollout={"temperature": 0.8}).succeed()
    steps = metrics(world.folder / run)[1:]
    assert len(steps) >= 3 and plan.summary(0) in output
    assert all(moved(m) == (plan.aliased[0], plan.received[0]) for m in steps)
    assert all(m["rollout/logprob_diff_max"] < 1e-4 for m in steps)
    assert steps[0]["policy/kl"] < steps[-1]["policy/kl"]
    assert all(m["policy/kl"] > 0 for m in steps[1:])


@pytest.mark.slow
def test_state_in_host_memory_changes_nothing(world: World, base: Path) -> None:
    run = world.copy("offload", step=4)
    world.train("offload", parallel={"offload": True}).succeed()
    same(run, base)
