"""Dividing work: everything once, near the optimum, limits kept, the same every time."""

from __future__ import annotations

import itertools
import random

import pytest

from srpo.balance import assign, assign_within, expected_lengths


def long_tail(count: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.lognormvariate(0, 1) for _ in range(count)]


def loads(lengths: list[float], bins: list[list[int]]) -> list[float]:
    return [sum(lengths[i] for i in members) for members in bins]


def bound(lengths: list[float], bins: int) -> float:
    return max(sum(lengths) / bins, max(lengths))


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("count, bins", [(0, 3), (1, 1), (1, 4), (7, 3), (8, 8), (9, 2), (40, 8)])
def test_every_item_once_and_the_longest_first(count: int, bins: int, limit: int | None):
    lengths = [float(x) for x in random.Random(count).choices(range(6), k=count)]
    chosen = assign(lengths, bins, limit=limit)
    assert len(chosen) == bins and sorted(i for members in chosen for i in members) == list(range(count))
    for members in chosen:
        assert members == sorted(members, key=lambda i: (-lengths[i], i))
        assert limit is None or len(members) <= limit


@pytest.mark.parametrize("count, bins", [(256, 8), (256, 64), (8192, 8), (8192, 64)])
def test_a_long_tail_is_within_a_thousandth_of_the_bound(count: int, bins: int):
    for seed in range(3):
        lengths = long_tail(count, seed)
        assert max(loads(lengths, assign(lengths, bins))) <= 1.001 * bound(lengths, bins)


@pytest.mark.parametrize("bins", [8, 64])
def test_equal_counts_cost_little(bins: int):
    lengths = long_tail(2048)
    chosen = assign(lengths, bins, limit=2048 // bins)
    assert {len(members) for members in chosen} == {2048 // bins}
    assert max(loads(lengths, chosen)) <= 1.01 * bound(lengths, bins)


def test_differencing_beats_longest_first():
    """8, 7, 6, 5, 4 in two bins: by greedy 17 and 13, by differencing 16 and 14."""
    lengths = [8.0, 7.0, 6.0, 5.0, 4.0]
    assert sorted(loads(lengths, assign(lengths, 2))) == [14.0, 16.0]
    assert sorted(loads(lengths, assign(lengths, 2, limit=3))) == [13.0, 17.0]


def test_small_cases_against_every_assignment():
    """Karmarkar and Karp's worst case in two bins is 7/6 of the optimum."""
    for seed in range(30):
        lengths = long_tail(8, seed)
        best = min(max(sum(x for x, b in zip(lengths, choice, strict=True) if b == k) for k in range(2))
                   for choice in itertools.product(range(2), repeat=8))
        found = max(loads(lengths, assign(lengths, 2)))
        assert best - 1e-9 <= found <= 7 / 6 * best + 1e-9


def test_a_limit_without_room_is_refused():
    with pytest.raises(ValueError, match="7 items do not fit 3 bins of 2"):
        assign([1.0] * 7, 3, limit=2)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("budget", [600, 1000, 5000])
def test_bins_of_a_budget(ranks: int, budget: int):
    """Costs grow faster than sizes: bins that are even in one are not in the other."""
    sizes = [min(600, int(100 * x) + 1) for x in long_tail(200)]
    costs = [s + s * s / 300 for s in sizes]
    chosen = assign_within(sizes, costs, ranks, budget)
    assert len(chosen) == ranks and len({len(bins) for bins in chosen}) == 1
    assert sorted(i for bins in chosen for members in bins for i in members) == list(range(200))
    assert all(sum(sizes[i] for i in members) <= budget for bins in chosen for members in bins)
    per_rank = [sum(costs[i] for members in bins for i in members) for bins in chosen]
    assert max(per_rank) <= 1.01 * min(per_rank)
    fewest = max(-(-sum(sizes[i] for members in bins for i in members) // budget) for bins in chosen)
    assert len(chosen[0]) <= 11 / 9 * fewest + 1


def test_bins_that_nothing_balances_still_fit():
    """6, 7, 4, 6, 7 in two bins of 16: differencing gives 17 and 13, first-fit decreasing 14 and 16."""
    sizes = [6, 7, 4, 6, 7]
    assert sorted(loads([float(s) for s in sizes], assign(sizes, 2))) == [13.0, 17.0]
    (chosen,) = assign_within(sizes, [1.0] * 5, 1, 16)
    assert sorted(sum(sizes[i] for i in members) for members in chosen) == [14, 16]


def test_ranks_without_items_have_empty_bins():
    assert assign_within([3], [3.0], 3, 4) == [[[0]], [[]], [[]]]
    assert assign_within([], [], 2, 4) == [[[]], [[]]]


def test_an_item_above_the_budget_is_refused():
    with pytest.raises(ValueError, match="an item of size 5 does not fit the budget of 4"):
        assign_within([1, 5], [1.0, 5.0], 1, 4)


def test_forecast():
    assert expected_lengths([None, None], [3, 9]) == [3.0, 9.0]
    assert expected_lengths([100.0, None, 50.0], [10, 4, 20]) == [100.0, 20.0, 50.0]
