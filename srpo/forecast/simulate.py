"""Training without a model: prompts of some latent difficulty, and a policy whose skill grows with what its updates
could learn from.

    P(correct) = sigmoid(skill - difficulty), 0 for the unsolvable ones
    a step's gain in skill = rate x (groups it trains on / batch) x (their mean `signal`) ^ exponent

The samplers are the objects that a run uses, asked as the controller asks them. docs/forecast.md says what follows from
these assumptions by construction, and what such a model cannot say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from srpo.control.sampler import Sampler
from srpo.control.steps import steps
from srpo.forecast.observed import signal
from srpo.forecast.project import leaves

Array = npt.NDArray[np.float64]
_NEVER = np.iinfo(np.int32).max
_BINS = 2000


@dataclass(frozen=True)
class Scenario:
    """Difficulty is normal with mean 0; skill and difficulty are in log-odds."""

    prompts: int = 1_000_000
    samples: int = 32
    batch: int = 256
    """Prompts a step."""
    epochs: int = 5
    """The budget: rollouts of this many epochs over all prompts."""
    skill: float = -1.0
    """At the start."""
    spread: float = 2.5
    """Standard deviation of the difficulty."""
    unsolvable: float = 0.05
    """Share of prompts that are never solved (a wrong reference answer, say)."""
    growth: float = 2.0
    """Skill gained by as many steps as an epoch over all prompts has, if every group were half correct."""
    exponent: float = 1.0
    """1: a step gains in proportion to its gradient. 1/2: as it would where the optimizer divides by the size of a
    gradient that is mostly noise."""
    seed: int = 1


@dataclass(frozen=True)
class Shown:
    """One epoch: groups. `complete`: the budget did not end in it."""

    seen: int
    informative: int
    trained: int
    dropped: int
    steps: int
    complete: bool


@dataclass
class Trajectory:
    """After each step: `rollouts` spent in all and the policy's `skill`; the beginning comes first."""

    bins: tuple[Array, Array]
    """Difficulties, and the share of all prompts at each; what is missing to 1 is unsolvable."""
    samples: int
    rollouts: list[int] = field(default_factory=list)
    skill: list[float] = field(default_factory=list)
    epochs: list[Shown] = field(default_factory=list)

    def accuracy(self, skill: float) -> float:
        """Expected over all prompts of the scenario, dropped ones too."""
        difficulty, share = self.bins
        return float(share @ (1 / (1 + np.exp(difficulty - skill))))

    def skill_at(self, rollouts: float) -> float:
        """After as many rollouts; the last there was, where data ran out before."""
        return self.skill[max(0, int(np.searchsorted(self.rollouts, rollouts, "right")) - 1)]

    def rollouts_to(self, skill: float) -> int | None:
        """Spent when the policy had that skill; None: it never did."""
        at = int(np.searchsorted(self.skill, skill))
        return self.rollouts[at] if at < len(self.skill) else None


def simulate(scenario: Scenario, sampler: Sampler) -> Trajectory:
    """Until the budget is spent, or an epoch has too few prompts for a step. The same scenario, the same bits. Memory:
    some 50 bytes a prompt and 100 a step."""
    s, rng = scenario, np.random.default_rng(scenario.seed)
    difficulty = rng.normal(0, s.spread, s.prompts).astype(np.float32)
    difficulty[rng.random(s.prompts, np.float32) < s.unsolvable] = np.inf
    run = Trajectory(_bins(difficulty), s.samples, [0], [s.skill])
    force, gone = signal(s.samples), leaves(sampler, s.samples)
    rate, budget = s.growth * s.batch / s.prompts, s.epochs * s.prompts * s.samples
    returns = np.zeros(s.prompts, np.int32)
    rollouts = epoch = 0
    while rollouts < budget:
        epoch += 1
        order = np.flatnonzero(returns <= epoch).astype(np.int32)
        if len(order) < s.batch:
            break
        rng.shuffle(order)
        correct = np.zeros(len(order), np.int16)
        roll_out = partial(_roll_out, rng, difficulty, order, correct, run)
        seen = trained = count = 0
        for step in steps(sampler, len(order), s.batch, roll_out):
            used = correct[step.trained]
            seen, trained, count = step.prompts.stop, trained + len(used), count + 1
            skill = run.skill[-1] + rate * len(used) / s.batch * float(force[used].mean()) ** s.exponent
            rollouts += len(step.prompts) * s.samples
            run.rollouts.append(rollouts)
            run.skill.append(skill)
            if rollouts >= budget:
                break
        correct = correct[:seen]
        left = order[:seen][gone[correct]] if seen == len(order) else order[:0]
        returns[left] = _NEVER if sampler.away is None else epoch + 1 + sampler.away
        informative = int(np.count_nonzero((correct > 0) & (correct < s.samples)))
        run.epochs.append(Shown(seen, informative, trained, len(left), count, seen == len(order)))
    return run


def _roll_out(rng: np.random.Generator, difficulty: npt.NDArray[np.float32], order: npt.NDArray[np.int32],
              correct: npt.NDArray[np.int16], run: Trajectory, places: range) -> list[bool]:
    """Fill in `correct` for some groups of an epoch; which of them are mixed."""
    part = slice(places.start, places.stop)
    correct[part] = rng.binomial(run.samples, 1 / (1 + np.exp(difficulty[order[part]] - run.skill[-1])))
    mixed: list[bool] = ((correct[part] > 0) & (correct[part] < run.samples)).tolist()
    return mixed


def _bins(difficulty: npt.NDArray[np.float32]) -> tuple[Array, Array]:
    counts, edges = np.histogram(difficulty[np.isfinite(difficulty)], _BINS)
    return (edges[1:] + edges[:-1]) / 2, counts / len(difficulty)
