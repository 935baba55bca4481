"""When a stage ends."""

import pytest

from srpo.config import Stage
from srpo.control.stages import ended


def stage(**fields) -> Stage:
    return Stage(name="s", domains=["math"], **fields)


def test_steps_and_epochs_end_after_that_many():
    assert ended(stage(until="steps", steps=3), [0.1, 0.2], 9) is None
    assert ended(stage(until="steps", steps=3), [0.1, 0.2, 0.3], 0) == "3 steps"
    assert ended(stage(until="epochs", epochs=2), [0.1] * 50, 1) is None
    assert ended(stage(until="epochs", epochs=2), [0.1] * 50, 2) == "2 epochs"


def test_max_steps_ends_any_stage():
    for until in ({"until": "plateau"}, {"until": "epochs", "epochs": 9}, {"until": "steps", "steps": 9}):
        rising = [float(i) for i in range(4)]
        assert ended(stage(**until, max_steps=4), rising, 0) == "4 steps, its max_steps"
        assert ended(stage(**until, max_steps=5), rising, 0) is None


@pytest.mark.parametrize(("rewards", "over"), [
    ([0.5, 0.5, 0.5], False),                       # fewer than two windows
    ([0.1, 0.2, 0.3, 0.4], False),                  # growing by 0.2 a window
    ([0.5, 0.5, 0.5, 0.5], True),
    ([0.5, 0.5, 0.4, 0.4], True),                   # falling is not growing
    ([0.0, 0.9, 0.5, 0.5, 0.5, 0.5], True),         # only the last two windows count
    ([0.5, 0.5, 0.5, 0.5, 0.5, 0.6], False),        # 0.05 gained
    ([0.5, 0.5, 0.5, 0.515], True),                 # 0.0075 gained: less than min_gain
])
def test_plateau_compares_two_windows(rewards, over):
    assert bool(ended(stage(until="plateau", window=2, min_gain=0.01), rewards, 0)) is over


def test_plateau_waits_for_min_steps():
    flat = stage(until="plateau", window=2, min_steps=6)
    assert ended(flat, [0.5] * 5, 0) is None
    assert "plateau after 6 steps: mean reward 0.5000" in (ended(flat, [0.5] * 6, 0) or "")
