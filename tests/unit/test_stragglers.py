"""Which replica the others wait for, and when it is worth a word."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from srpo import stragglers
from srpo.stragglers import STEPS, Stragglers, slowest


def times(*updates: float, rollout: float = 10.0) -> list[dict[str, float]]:
    return [{"rollout": rollout, "update": update} for update in updates]


def test_one_replica_cannot_be_compared():
    assert slowest(times(1.0, 5.0), 2) is None


def test_a_replica_is_as_slow_as_its_slowest_rank_and_named_by_its_first():
    assert slowest(times(1.0, 1.0, 1.0, 9.0, 2.0, 1.0), 2) == (2, "update", 9.0, 1.5)


def test_the_phase_that_costs_most_is_named_not_the_largest_ratio():
    every = [{"rollout": 10.0, "reward": 0.001}, {"rollout": 10.0, "reward": 0.1}, {"rollout": 12.0, "reward": 0.001}]
    assert slowest(every, 1) == (2, "rollout", 12.0, 10.0)


def test_without_any_time_nobody_is_slower():
    assert slowest([{"update": 0.0}] * 2, 1) == (0, "update", 0.0, 0.0)


@pytest.fixture
def observe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    monkeypatch.setattr(stragglers.dist, "get_rank", lambda: 0)
    watcher = Stragglers(1)

    def observe(*updates: float) -> dict[str, float]:
        every = times(*updates)
        monkeypatch.setattr(stragglers, "all_gather", lambda mine: [(f"host-{i}", t) for i, t in enumerate(every)])
        return watcher.observe(every[0])

    return observe


def test_the_same_one_many_times_is_said_once(observe, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        for _ in range(STEPS - 1):
            assert observe(5.0, 5.0, 9.0) == {"time/slowest_rank": 2, "time/slowest_ratio": 1.8}
        assert not caplog.records
        for _ in range(STEPS):
            observe(5.0, 5.0, 9.0)
    assert [r.getMessage() for r in caplog.records] == [
        "rank 2 (host-2) has been the slowest for 5 steps: update took it 9.0 s, the others 5.0 s"]


@pytest.mark.parametrize("odd", [(9.0, 5.0, 5.0), (5.0, 5.0, 5.5)], ids=["another one", "hardly"])
def test_one_step_in_between_begins_anew(observe, caplog: pytest.LogCaptureFixture, odd: tuple[float, ...]):
    with caplog.at_level(logging.WARNING):
        for step in range(2 * STEPS - 1):
            observe(*(odd if step == STEPS - 1 else (5.0, 5.0, 9.0)))
    assert not caplog.records
