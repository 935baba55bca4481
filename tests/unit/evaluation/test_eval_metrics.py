"""Every estimate against the definition: all subsets of the samples, one by one."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np
import pytest

from srpo.evaluation import metrics
from srpo.evaluation.metrics import intervals, majority_at_k, pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n: int):
    for c in range(n + 1):
        samples = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            found = [any(s) for s in combinations(samples, k)]
            assert pass_at_k(n, c, k) == pytest.approx(sum(found) / len(found), abs=1e-12)


def test_pass_at_1_is_the_mean_and_large_numbers_do_not_overflow():
    assert pass_at_k(1000, 137, 1) == pytest.approx(0.137)
    assert pass_at_k(1000, 1, 500) == pytest.approx(0.5)
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4)


def enumerated(groups: Sequence[int | None], correct: Sequence[float], k: int) -> float:
    """Mean over the subsets; among answers with equally many votes, the mean over these."""
    quality = {g: np.mean([c for h, c in zip(groups, correct, strict=True) if h == g]) for g in set(groups)}
    scores = []
    for subset in combinations(groups, k):
        votes = Counter(g for g in subset if g is not None)
        first = [g for g, n in votes.items() if n == max(votes.values())]
        scores.append(np.mean([quality[g] for g in first]) if first else 0.0)
    return float(np.mean(scores))


@pytest.mark.parametrize("seed", range(40))
def test_majority_at_k_is_the_share_of_subsets_whose_majority_is_correct(seed: int):
    rng = random.Random(seed)
    n, answers = rng.randint(1, 9), rng.randint(1, 4)
    groups = [rng.choice([None, *range(answers)]) for _ in range(n)]
    right = {g: float(rng.random() < 0.5) for g in range(answers)}
    correct = [0.0 if g is None else right[g] for g in groups]
    if seed % 4 == 0:  # the grader may tell members of a group apart
        correct = [float(rng.random() < 0.5) if g is not None else 0.0 for g in groups]
    expected = {k: enumerated(groups, correct, k) for k in range(1, n + 1)}
    assert majority_at_k(groups, correct, range(1, n + 1)) == pytest.approx(expected, abs=1e-12)


def test_ties_and_silence():
    assert majority_at_k([0, 1], [1.0, 0.0], [1, 2]) == {1: 0.5, 2: 0.5}
    assert majority_at_k([0, 0, 1, 1, 2], [1.0, 1.0, 0.0, 0.0, 0.0], [5]) == {5: 0.5}
    assert majority_at_k([None, None, 0], [0.0, 0.0, 1.0], [1, 2, 3]) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})
    assert majority_at_k([None, None], [0.0, 0.0], [1, 2]) == {1: 0.0, 2: 0.0}


def test_majority_of_many_samples():
    """Sixty votes for a wrong answer outvote forty for the right one; half of the small subsets of two are ties."""
    groups, correct = [0] * 60 + [1] * 40, [0.0] * 60 + [1.0] * 40
    found = majority_at_k(groups, correct, [1, 2, 99, 100])
    assert found[1] == pytest.approx(0.4)
    assert found[2] == pytest.approx(comb(40, 2) / comb(100, 2) + 60 * 40 / comb(100, 2) / 2)
    assert found[99] == found[100] == 0.0
    big = [i % 7 for i in range(700)]
    assert majority_at_k(big, [float(g == 0) for g in big], [700])[700] == pytest.approx(1 / 7)


def test_intervals_cover_the_mean_and_repeat():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        values = rng.binomial(8, 0.3, size=(60, 1)) / 8
        low, high = intervals(values, seed=i)
        hits += bool(low[0] <= 0.3 <= high[0])
    assert 180 <= hits <= 199  # 95 % of 200, give or take
    again = intervals(values, seed=199)
    assert (again[0] == low).all() and (again[1] == high).all()
    other = intervals(values, seed=200)
    assert (other[0] != low).any() or (other[1] != high).any()


def test_an_interval_of_one_problem_is_a_point():
    low, high = intervals(np.array([[0.25, 1.0]]), seed=1)
    assert low.tolist() == high.tolist() == [0.25, 1.0]


@pytest.mark.parametrize("columns", [1, 3])
def test_intervals_hold_a_block_and_its_size_changes_nothing(monkeypatch: pytest.MonkeyPatch, columns: int):
    values = np.random.default_rng(1).random((501, columns))
    drawn = values[np.random.default_rng(7).integers(501, size=(metrics.RESAMPLES, 501))].mean(1)
    at_once = np.quantile(drawn, [0.025, 0.975], axis=0)
    for block in (1 << 14, 1 << 17):
        monkeypatch.setattr(metrics, "BLOCK", block)
        tracemalloc.start()
        ends = intervals(values, seed=7)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (np.array(ends) == at_once).all()
        assert peak < 2 * 8 * block + 8 * 4 * metrics.RESAMPLES * columns + (1 << 20)  # beside the means, a few times
