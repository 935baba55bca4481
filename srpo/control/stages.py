"""When a stage of the curriculum ends.

The SRPO report moves from maths to maths and code when the growth of the reward plateaus, and gives no rule. Ours looks
at the trend of the last `window` steps and at how well it is known: a stage has plateaued when one can be 95 %
confident that `window` more steps would gain less than `min_gain`. Noise widens the bound: in doubt the stage goes on.
What makes the step rewards more than a straight line with independent errors, and how it is met:

- Resampling takes solved prompts out, and the mean reward falls at once though the policy is the same. Each set of
  prompts therefore has a level of its own in the regression, and only the growth within a set counts. (Adding up what
  resampling took away would not do: the prompts that happened to be solved are not as good as they looked.)
- A step of few prompts, an epoch's last, is noisier: steps weigh as much as they have rollouts.
- Errors of neighbouring steps are alike: their first-order autocorrelation r makes n steps worth n (1 - r) / (1 + r).
  Its estimate from residuals is too low by about (p + (p + 2) r) / n with p fitted parameters (Marriott and Pope 1954
  for p = 1), which is put right.
- After a change of the prompts the window is still full of steps with the old ones, which had less to teach: no plateau
  is called in the first `cooldown` steps.

A bound looked at after every step is passed by chance more often than once; tests/unit/control/test_stages.py has a
simulation, and docs/curriculum.md its figures.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from statistics import NormalDist

from srpo.config import Stage
from srpo.control.ledger import StepReward

CONFIDENCE = 0.95
"""Of the one-sided bound on the growth."""
LARGEST_CORRELATION = 0.9
"""Autocorrelation is not believed to be larger: a window of so few independent steps says nothing anyway."""


@dataclass(frozen=True)
class Trend:
    """Growth of the mean reward a step, its standard error, and the error's degrees of freedom."""

    slope: float
    error: float
    freedom: float

    @property
    def bound(self) -> float:
        """The growth a step is below this, with CONFIDENCE."""
        return self.slope + _student(CONFIDENCE, self.freedom) * self.error


def ended(stage: Stage, rewards: Sequence[StepReward], epochs: int) -> str | None:
    """Why a stage is over, readably, or None while it is not.

    `rewards` are those of all of the stage's steps, `epochs` how many epochs closed in it.
    """
    steps = len(rewards)
    if stage.max_steps is not None and steps >= stage.max_steps:
        return f"{steps} steps, its max_steps"
    if stage.until == "steps" and steps >= (stage.steps or 0):
        return f"{steps} steps"
    if stage.until == "epochs" and epochs >= (stage.epochs or 0):
        return f"{epochs} epochs"
    if stage.until == "plateau" and steps >= max(stage.window, stage.min_steps):
        found = trend(rewards[-stage.window:]) if same_prompts(rewards) >= stage.cooldown else None
        if found and found.bound * stage.window < stage.min_gain:
            return f"plateau after {steps} steps: {growth(stage, found)}"
    return None


def ending(stage: str, following: str | None, why: str) -> str:
    """What the ledger's event tells of a stage's end; `following`: the next stage, None at the end of the run."""
    return f"{stage} -> {following or 'end of the run'}: {why}"


def same_prompts(rewards: Sequence[StepReward]) -> int:
    """How many of the latest steps had the prompts of the last one."""
    return sum(1 for _ in takewhile(lambda r: r.since == rewards[-1].since, reversed(rewards)))


def growth(stage: Stage, found: Trend) -> str:
    """A trend in words, over the stage's window."""
    window = stage.window
    return (f"reward grows by {found.slope * window:+.4f} ± {found.error * window:.4f} in {window} steps, with "
            f"{CONFIDENCE:.0%} confidence by less than {found.bound * window:+.4f}")


def trend(rewards: Sequence[StepReward]) -> Trend | None:
    """Weighted least squares with a level for each set of prompts; None when too few steps share one."""
    steps, parameters = len(rewards), 1 + len({r.since for r in rewards})
    freedom = steps - parameters
    if freedom < 3:
        return None
    weights = [r.rollouts for r in rewards]
    times = _without_levels(range(steps), rewards)
    values = _without_levels([r.reward for r in rewards], rewards)
    spread = math.fsum(w * t * t for w, t in zip(weights, times, strict=True))
    if not spread:
        return None
    slope = math.fsum(w * t * v for w, t, v in zip(weights, times, values, strict=True)) / spread
    residuals = [math.sqrt(w) * (v - slope * t) for w, t, v in zip(weights, times, values, strict=True)]
    squares = math.fsum(r * r for r in residuals)
    correlation = math.fsum(a * b for a, b in pairwise(residuals)) / squares if squares else 0.0
    correlation = (correlation + parameters / steps) / (1 - (parameters + 2) / steps)
    correlation = min(max(correlation, 0.0), LARGEST_CORRELATION)
    worth = (1 - correlation) / (1 + correlation)
    return Trend(slope, math.sqrt(squares / freedom / spread / worth), max(3.0, steps * worth - parameters))


def _without_levels(values: Sequence[float], rewards: Sequence[StepReward]) -> list[float]:
    """Each value less the weighted mean of those with the same prompts."""
    sums: defaultdict[int, float] = defaultdict(float)
    weights: defaultdict[int, int] = defaultdict(int)
    for value, r in zip(values, rewards, strict=True):
        sums[r.since] += r.rollouts * value
        weights[r.since] += r.rollouts
    return [value - sums[r.since] / weights[r.since] for value, r in zip(values, rewards, strict=True)]


def _student(probability: float, freedom: float) -> float:
    """Quantile of Student's t by its expansion about the normal one (Abramowitz and Stegun 26.7.5): to 2 % from three
    degrees of freedom on."""
    z = NormalDist().inv_cdf(probability)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
