"""Which groups a replica's step trains on, and what it leaves for the next."""

from __future__ import annotations

import random

import numpy as np
import pytest

from srpo.batch import Sample
from srpo.data.schema import Problem
from srpo.groups import Groups, Rollouts, merge, quotas
from srpo.rewards.compose import Graded


def sample(*tokens: int, finished: bool = True, stale: int = 0) -> Sample:
    return Sample(np.array([1]), np.array(tokens), np.zeros(len(tokens), np.float32), stale=stale, finished=finished)


def test_quotas_are_in_proportion_and_add_up():
    assert quotas([4, 4], 8) == [4, 4] and quotas([3, 5], 4) == [1, 3] and quotas([0, 2], 1) == [0, 1]
    assert quotas([0, 0], 0) == [0, 0]
    rng = random.Random(1)
    for _ in range(200):
        sizes = [rng.randrange(6) for _ in range(rng.randrange(1, 9))]
        finish = rng.randint(0, sum(sizes))
        found = quotas(sizes, finish)
        assert sum(found) == finish and all(0 <= q <= size for q, size in zip(found, sizes, strict=True))


def test_the_first_complete_groups_are_chosen_and_nothing_is_lost():
    groups = Groups(["a", "b", "c"], 2, 1, {})
    assert not groups.enough
    groups.add({("b", 1): sample(1), ("a", 0): sample(2, 3)})
    groups.add({})
    assert not groups.enough
    groups.add({("b", 0): sample(4)})
    assert groups.enough
    chosen = groups.chosen()
    assert list(chosen) == ["b"] and [s.tokens.tolist() for s in chosen["b"]] == [[4], [1]]
    left = groups.left({("a", 1): sample(5, finished=False), ("c", 1): sample(finished=False)})
    found = {(i, j): (s.tokens.tolist(), s.finished, s.stale) for i, group in left.items() for j, s in group.items()}
    assert found == {("a", 0): ([2, 3], True, 0), ("a", 1): ([5], False, 0), ("c", 1): ([], False, 0)}
    begun = Groups(["a", "b", "c"], 2, 1, left).begun
    assert {key: s.stale for key, s in begun.items()} == {("a", 0): 2, ("a", 1): 1, ("c", 1): 0}


def test_a_group_beyond_the_quota_waits_complete():
    groups = Groups(["a", "b"], 1, 1, {})
    groups.add({("b", 0): sample(1), ("a", 0): sample(2)})
    assert list(groups.chosen()) == ["b"]
    assert groups.left({})["a"][0].finished


def test_what_was_begun_stays_begun_when_its_turn_does_not_come():
    """A replica whose quota is nought, or reached by what it began with, hands its responses on as they were."""
    begun = {"a": {0: sample(1, 2, finished=False), 1: sample(3)}}
    groups = Groups(["a", "b"], 2, 0, begun)
    assert groups.enough and set(groups.begun) == {("a", 0), ("a", 1)}
    groups.add({("a", 1): groups.begun["a", 1]})
    left = groups.left({})
    assert left["a"][0].tokens.tolist() == [1, 2] and [left["a"][j].stale for j in (0, 1)] == [2, 1]
    assert left["b"] == {}


@pytest.mark.parametrize("parts", [[], [{}], [{"a": 1}, {}, {"b": 2}]])
def test_merge(parts: list[dict[str, int]]):
    assert merge(parts) == {i: x for part in parts for i, x in part.items()}


def rollouts(*correct: tuple[float, float]) -> Rollouts:
    """A group of two for each pair; tokens tell the samples apart."""
    return Rollouts([Problem(f"p{n}", "math", "") for n in range(len(correct))],
                    [sample(2 * n + j) for n in range(len(correct)) for j in range(2)],
                    [Graded(c, 0.5, {}, "", False) for pair in correct for c in pair])


def test_chosen_groups_keep_their_samples_and_grades():
    every = rollouts((0.0, 1.0), (1.0, 1.0)) + rollouts((0.25, 0.75))
    chosen = every.only([0, 2])
    assert every.members([0, 2]) == [0, 1, 4, 5] and chosen.problems == [every.problems[0], every.problems[2]]
    assert chosen.samples == [every.samples[i] for i in (0, 1, 4, 5)]
    assert [g.correct for g in chosen.graded] == [0.0, 1.0, 0.25, 0.75]
