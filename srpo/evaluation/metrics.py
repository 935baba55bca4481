"""Estimates from n samples of a problem for k of them, and how sure their mean over problems is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MAX_SAMPLES = 1000
"""A problem's samples: the number of their subsets must be a float."""
RESAMPLES = 10_000
"""Of the bootstrap."""
BLOCK = 1 << 22
"""Numbers that it holds at a time, 32 MiB and as much again for what it draws, unless a single resample has more."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k of the n samples, drawn without replacement, is correct: 1 - C(n-c, k) /
    C(n, k), as a product that neither overflows nor cancels (Chen et al. 2021, arXiv 2107.03374). Unbiased."""
    if n - correct < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - correct + 1, n + 1)))


def majority_at_k(groups: Sequence[int | None], correct: Sequence[float], ks: Iterable[int]) -> dict[int, float]:
    """Probability that the answer that most of k samples give is correct, over all subsets of k of the n samples.

    `groups` says which samples give the same answer; those with None give none and do not vote. Among answers with
    equally many votes one is drawn at random; where nobody votes it is wrong. A group is correct as far as its members
    are. Exact, for all k at once, by counting the subsets in which a most frequent answer has j votes: float64 sums of
    positive terms, nothing cancels.
    """
    n = len(groups)
    named = [g for g in groups if g is not None]
    members = {g: [c for h, c in zip(groups, correct, strict=True) if h == g] for g in dict.fromkeys(named)}
    silent = n - len(named)
    score = np.zeros(n + 1)
    for j in range(1, max(map(len, members.values()), default=0) + 1):
        # ways[r, t]: choices of r samples with t answers at j votes and none above; right: of their summed correctness
        ways, right = np.zeros((2, n + 1, n // j + 1))
        ways[: silent + 1, 0] = [comb(silent, x) for x in range(silent + 1)]
        for group in members.values():
            ways, right = _with_group(ways, right, len(group), float(np.mean(group)), j)
        score += (right[:, 1:] / np.arange(1, n // j + 1)).sum(1)
    return {k: float(score[k] / comb(n, k)) for k in ks}


def _with_group(ways: Array, right: Array, size: int, quality: float, j: int) -> tuple[Array, Array]:
    """The counts after 0 to min(size, j) samples of one more group are chosen too."""
    new_ways, new_right = np.zeros_like(ways), np.zeros_like(right)
    n = len(ways) - 1
    for x in range(min(size, j - 1) + 1):
        new_ways[x:] += comb(size, x) * ways[: n + 1 - x]
        new_right[x:] += comb(size, x) * right[: n + 1 - x]
    if size >= j:
        new_ways[j:, 1:] += comb(size, j) * ways[: n + 1 - j, :-1]
        new_right[j:, 1:] += comb(size, j) * (right + quality * ways)[: n + 1 - j, :-1]
    return new_ways, new_right


def intervals(values: Array, seed: int, level: float = 0.95) -> tuple[Array, Array]:
    """Low and high end [M] for the mean of each column of `values` [problems, M]: percentile bootstrap over problems,
    the same resamples for every column. Samples of a problem are taken as they are. The ends do not depend on BLOCK."""
    rng = np.random.default_rng(seed)
    n = len(values)
    # A column at a time would need the resamples again; a block of rows at a time bounds the memory.
    rows = max(1, BLOCK // values.size)
    sizes = [min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows)]
    means = np.concatenate([values[rng.integers(n, size=(size, n))].mean(1) for size in sizes])
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high
