"""Scores on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence

from srpo.data.schema import Problem
from srpo.rewards.compose import Graded


def average_at_k(problems: Sequence[Problem], graded: Sequence[Graded]) -> dict[str, float]:
    """avg@k by domain, as eval/math and eval/code: the mean correctness of all samples of all its problems.

    `graded` holds the same number of consecutive samples for each problem.
    """
    k = len(graded) // len(problems)
    scores: dict[str, list[float]] = {}
    for i, problem in enumerate(problems):
        scores.setdefault(problem.domain, []).extend(g.correct for g in graded[i * k : (i + 1) * k])
    return {f"eval/{domain}": sum(s) / len(s) for domain, s in scores.items()}
