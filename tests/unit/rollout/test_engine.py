"""What the engine asks of vLLM on a GPU, where its memory is and when; a stand-in says what it was asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from srpo.rollout.engine import RolloutEngine


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch has to do on a GPU around it is not these tests' matter."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def engine(aliased: bool) -> tuple[RolloutEngine, list[Any]]:
    """As it is after start-up: asleep."""
    calls: list[Any] = []
    made: Any = object.__new__(RolloutEngine)
    made.on_cuda = made.current = made.awake = True
    made.llm = SimpleNamespace(sleep=lambda level: calls.append(("sleep", level)),
                               wake_up=lambda tags=None: calls.append(("wake", tags)))
    made.weights = SimpleNamespace(aliased=aliased, sync=lambda: calls.append("sync"))
    made.sleep()
    return made, calls


def step(made: RolloutEngine, update: bool = True) -> None:
    made.wake()
    made.sleep()
    if update:
        made.sync()


def test_shared_weights_stay_where_they_are() -> None:
    made, calls = engine(aliased=True)
    step(made)
    made.wake()
    assert calls == [("sleep", 1), ("wake", None), ("sleep", 1), "sync", ("wake", None)]


@pytest.mark.parametrize("evaluation", [False, True])
def test_weights_of_its_own_are_dropped_and_sent_again_before_anything_is_generated(evaluation: bool) -> None:
    """Once a step; after an evaluation, which no update follows, once more."""
    made, calls = engine(aliased=False)
    fresh = [("wake", ["weights"]), "sync"]
    step(made)
    expected = [("sleep", 2), *fresh, ("wake", None), ("sleep", 2), *fresh]
    if evaluation:
        step(made, update=False)
        expected += [("wake", None), ("sleep", 2), *fresh]
    made.wake()
    assert calls == [*expected, ("wake", None)]


def test_another_round_of_the_same_step_wakes_nothing() -> None:
    made, calls = engine(aliased=False)
    made.wake()
    before = list(calls)
    made.wake()
    assert calls == before
