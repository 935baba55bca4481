"""Difficulty-filtered sampling: only prompts that the policy solves sometimes take part.

A group's gradient is largest where about half of its responses are right (the variance of its correctness; Bae et al.,
arXiv 2504.03380, filter each batch by thresholds on both sides). Filtering a data set beforehand by a model's measured
pass rate is common practice. Here both are one rule: what the data measured (`pass_rate`, from `srpo prepare --model`)
counts until the run has rolled a prompt out itself, then the latest epoch does. The thresholds are ours.

Unlike history resampling it also drops what is never solved, and without `resample.epochs` for good: a policy that has
grown does not meet those prompts again.
"""

from __future__ import annotations

from srpo.control.ledger import Outcome
from srpo.control.sampler import Sampler


class DifficultyFilter(Sampler):
    """Prompts whose pass rate is outside [`low`, `high`] leave."""

    def __init__(self, low: float, high: float, away: int | None):
        self._low, self._high, self.away = low, high, away

    def exclude(self, pass_rate: float) -> str | None:
        why = self._outside(pass_rate)
        return f"measured pass rate {pass_rate:g}, {why}" if why else None

    def drop(self, outcome: Outcome) -> str | None:
        why = self._outside(outcome.correct / outcome.samples)
        return f"{outcome.correct} of {outcome.samples} correct, {why}" if why else None

    def _outside(self, pass_rate: float) -> str | None:
        if pass_rate < self._low:
            return f"below {self._low:g}"
        return f"above {self._high:g}" if pass_rate > self._high else None
