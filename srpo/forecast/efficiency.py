"""How many steps an epoch makes, and how much of what it rolls out they use."""

from __future__ import annotations

from itertools import islice

import numpy as np

from srpo.control.sampler import Sampler
from srpo.control.steps import steps

_STEPS = 100
"""Steps that stand for all of an epoch."""


def efficiency(sampler: Sampler, prompts: int, batch: int, informative: float) -> tuple[float, float]:
    """(steps, share of the informative groups that updates use) of an epoch in which that share of the groups is
    informative: of its first steps, scaled up."""
    if not prompts:
        return 0.0, 1.0
    rng = np.random.default_rng(0)
    mixed: list[bool] = []

    def roll_out(places: range) -> list[bool]:
        drawn: list[bool] = (rng.random(len(places)) < informative).tolist()
        mixed.extend(drawn)
        return drawn

    made = list(islice(steps(sampler, prompts, batch, roll_out), _STEPS))
    used = sum(mixed[i] for step in made for i in step.trained)
    return len(made) * prompts / len(mixed), used / sum(mixed) if any(mixed) else 1.0
