"""Samplers side by side, in one scenario, at equal rollouts and at equal steps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from srpo.config import Resample
from srpo.control.resample import sampler
from srpo.forecast.simulate import Scenario, Trajectory, simulate

SAMPLERS: tuple[str, ...] = get_args(Resample.model_fields["sampler"].annotation)
ASSUMPTIONS = [
    "One skill for all prompts: what is learned on one helps with every other, and nothing is forgotten. A sampler "
    "that skips what is mastered therefore loses nothing here, by construction; a run can.",
    "An update gains by the spread of correctness in the groups that it trains on. That alone decides how groups "
    "without a gradient, and steps of mixed groups only, compare; exponent=0.5 is another answer: try both.",
    "Rollouts all cost the same: no lengths, and no wait for the longest response of a round, of which refilling has "
    "several.",
    "Difficulty and growth are the scenario's, not measured. The tables rank rules under these assumptions; they "
    "predict no model's accuracy.",
]
_POINTS = 101


def compare(scenario: Scenario) -> dict[str, Any]:
    """JSON-able: the scenario, and `of` each sampler, as the configuration's defaults set it, what `_summary` has."""
    runs = {name: simulate(scenario, sampler(Resample.model_validate({"sampler": name}))) for name in SAMPLERS}
    steps = min(len(run.skill) for run in runs.values()) - 1
    target = runs["plain"].skill[-1]
    return {"scenario": asdict(scenario), "assumptions": ASSUMPTIONS, "equal_steps": steps,
            "of": {name: _summary(run, scenario, steps, target) for name, run in runs.items()}}


def _summary(run: Trajectory, scenario: Scenario, steps: int, target: float) -> dict[str, Any]:
    """Counts are groups, unless they say rollouts."""
    budget = scenario.epochs * scenario.prompts * scenario.samples
    seen, informative, trained = (sum(getattr(epoch, name) for epoch in run.epochs)
                                  for name in ("seen", "informative", "trained"))
    at = np.linspace(0, len(run.skill) - 1, min(_POINTS, len(run.skill))).astype(int)
    return {
        "accuracy": {f"{part:g}": run.accuracy(run.skill_at(part * budget)) for part in (0, 0.25, 0.5, 1)},
        "accuracy_at_equal_steps": run.accuracy(run.skill[steps]),
        "steps": len(run.skill) - 1,
        "rollouts": run.rollouts[-1],
        "rollouts_to_plain": run.rollouts_to(target),
        "informative_share": informative / seen,
        "rollouts_not_trained_on": (seen - trained) * run.samples,
        "rollouts_uninformative": (seen - informative) * run.samples,
        "epochs": [asdict(e) for e in run.epochs],
        "curve": [{"step": int(i), "rollouts": run.rollouts[i], "skill": run.skill[i],
                   "accuracy": run.accuracy(run.skill[i])} for i in at],
    }
