"""History resampling, SRPO's sampler: prompts that the policy has mastered leave the data set after the epoch.

From the SRPO report (arXiv 2504.14286): prompts whose rollouts were all correct have no more to teach about being right
and are dropped; mixed and all-wrong ones stay. A `drop_at` below 1, and an absence of some epochs instead of for good,
are ours. "Correct" is a rollout's accuracy, never its reward, which also holds format and length terms: a dropped
group's advantages need not have been zero.
"""

from __future__ import annotations

from srpo.control.ledger import Outcome
from srpo.control.sampler import Sampler


class HistoryResampling(Sampler):
    """Prompts whose pass rate in the epoch was at least `drop_at` leave."""

    def __init__(self, drop_at: float, away: int | None):
        self._drop_at, self.away = drop_at, away

    def drop(self, outcome: Outcome) -> str | None:
        if outcome.correct / outcome.samples < self._drop_at:
            return None
        return f"{outcome.correct} of {outcome.samples} correct"
