"""The groups that one vLLM replica samples in one step, and which of them the step trains on.

With rollout.oversample a step begins more groups than it trains on. Each replica stops when it has completed its quota:
a rule of its own requests alone, so that it does not depend on who is faster, and gives the same bits after a resume.
What is left, responses interrupted and responses finished, goes on in the next step. (Kimi k1.5's partial rollouts are
of this kind; there a response is interrupted at a length.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

from srpo.batch import Sample
from srpo.data.schema import Problem
from srpo.rewards.compose import Graded

T = TypeVar("T")
Group = dict[int, Sample]
"""Responses by their sample index; some missing or unfinished while the group is not complete."""


@dataclass(frozen=True)
class Rollouts:
    """Complete groups of all replicas: one after the other the samples of each problem, equally many, and their grades.
    """

    problems: list[Problem]
    samples: list[Sample]
    graded: list[Graded]

    def __add__(self, other: Rollouts) -> Rollouts:
        return Rollouts(self.problems + other.problems, self.samples + other.samples, self.graded + other.graded)

    def members(self, groups: Sequence[int]) -> list[int]:
        """Places of the samples of some groups."""
        size = len(self.samples) // len(self.problems)
        return [n * size + j for n in groups for j in range(size)]

    def only(self, groups: Sequence[int]) -> Rollouts:
        members = self.members(groups)
        return Rollouts([self.problems[n] for n in groups], [self.samples[i] for i in members],
                        [self.graded[i] for i in members])


def quotas(sizes: Sequence[int], finish: int) -> list[int]:
    """How many groups each replica has to complete, of the `sizes` that it has: in proportion, `finish` in all."""
    edges = [finish * before // max(1, sum(sizes)) for before in accumulate(sizes, initial=0)]
    return [b - a for a, b in pairwise(edges)]


class Groups:
    """`share`: the prompts of this replica; `begun`: what earlier steps left of some of them."""

    def __init__(self, share: Sequence[str], samples: int, quota: int, begun: Mapping[str, Group]):
        self._samples, self._quota = samples, quota
        self._finished: dict[str, Group] = {i: {} for i in share}
        self._complete: list[str] = []
        self.begun = {(i, j): replace(sample, stale=len(sample.tokens))
                      for i, group in begun.items() for j, sample in group.items()}
        """By prompt and sample; an older policy has sampled all that they hold."""

    @property
    def enough(self) -> bool:
        return len(self._complete) >= self._quota

    def add(self, finished: Mapping[tuple[str, int], Sample]) -> None:
        for (i, j), sample in finished.items():
            self._finished[i][j] = sample
            if len(self._finished[i]) == self._samples:
                self._complete.append(i)

    def chosen(self) -> dict[str, list[Sample]]:
        """The quota's groups, those that were complete first."""
        return {i: [self._finished[i][j] for j in range(self._samples)] for i in self._complete[: self._quota]}

    def left(self, interrupted: Mapping[tuple[str, int], Sample]) -> dict[str, Group]:
        """The other groups, which the next step begins with."""
        rest: dict[str, Group] = {i: {} for i in self._finished if i not in self._complete[: self._quota]}
        finished = {(i, j): sample for i, group in self._finished.items() for j, sample in group.items()}
        for (i, j), sample in (self.begun | dict(interrupted) | finished).items():
            if i in rest:
                rest[i][j] = sample
        return rest


def merge(parts: Sequence[dict[str, T]]) -> dict[str, T]:
    """What the replicas have, by prompt."""
    return {i: group for part in parts for i, group in part.items()}
