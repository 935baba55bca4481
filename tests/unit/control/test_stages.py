"""When a stage ends: by count, and by the trend of its rewards and what is known of it."""

import math
import random
from statistics import fmean, stdev

import pytest

from srpo.config import Stage
from srpo.control.ledger import StepReward
from srpo.control.stages import _student, ended, trend


def stage(**fields) -> Stage:
    return Stage(name="s", domains=["math"], **fields)


def steps(rewards, since=lambda i: 1, rollouts=lambda i: 8) -> list[StepReward]:
    return [StepReward(r, rollouts(i), since(i)) for i, r in enumerate(rewards)]


PLATEAU = stage(until="plateau")


def test_steps_and_epochs_end_after_that_many():
    assert ended(stage(until="steps", steps=3), steps([0.1, 0.2]), 9) is None
    assert ended(stage(until="steps", steps=3), steps([0.1, 0.2, 0.3]), 0) == "3 steps"
    assert ended(stage(until="epochs", epochs=2), steps([0.1] * 50), 1) is None
    assert ended(stage(until="epochs", epochs=2), steps([0.1] * 50), 2) == "2 epochs"


def test_max_steps_ends_any_stage():
    for until in ({"until": "plateau"}, {"until": "epochs", "epochs": 9}, {"until": "steps", "steps": 9}):
        rising = steps(range(4))
        assert ended(stage(**until, max_steps=4), rising, 0) == "4 steps, its max_steps"
        assert ended(stage(**until, max_steps=5), rising, 0) is None


# -- the trend ------------------------------------------------------------------------------------------------------


def test_the_trend_is_the_textbook_s():
    """Least squares by its closed form; rewards that jump to and fro show no autocorrelation to correct for."""
    y = [0.1, 0.3, 0.2, 0.4, 0.3, 0.5]
    x = [i - 2.5 for i in range(6)]
    slope = sum(a * b for a, b in zip(x, y, strict=True)) / 17.5
    errors = [b - fmean(y) - slope * a for a, b in zip(x, y, strict=True)]
    found = trend(steps(y))
    assert found and found.slope == pytest.approx(slope)
    assert found.error == pytest.approx(math.sqrt(sum(e * e for e in errors) / 4 / 17.5))
    assert found.freedom == 4


@pytest.mark.parametrize(("freedom", "t"), [(3, 2.353), (5, 2.015), (10, 1.812), (30, 1.697), (1e9, 1.645)])
def test_the_quantile_is_student_s(freedom, t):
    assert _student(0.95, freedom) == pytest.approx(t, rel=0.02)


def test_a_fall_by_resampling_is_no_fall_of_the_policy():
    """Growth of 0.01 a step, and solved prompts leave after ten and twenty: the trend is the policy's."""
    sawtooth = [0.01 * i - 0.2 * (i // 10) for i in range(30)]
    found = trend(steps(sawtooth, since=lambda i: i // 10))
    assert found and found.slope == pytest.approx(0.01) and found.error < 1e-12
    blind = trend(steps(sawtooth))
    assert blind and blind.slope < 0


def test_a_step_weighs_as_much_as_it_has_rollouts():
    """An epoch's last step of one prompt, far off, hardly moves the trend."""
    y = [0.01 * i for i in range(20)] + [0.9]
    small = trend(steps(y, rollouts=lambda i: 1 if i == 20 else 256))
    equal = trend(steps(y))
    assert small and equal and small.slope == pytest.approx(0.01, rel=0.02) and equal.slope > 0.015


def test_there_is_no_trend_without_steps_that_share_their_prompts():
    assert trend(steps([0.5] * 4)) is None and trend(steps([0.5] * 5)) is not None
    assert trend(steps([0.5] * 50, since=lambda i: i)) is None
    assert trend(steps([0.5] * 6, since=lambda i: i // 2)) is None
    assert trend(steps([0.5] * 50, since=lambda i: i // 2)) is not None


def noise(rng, count, deviation, correlation):
    """A first-order autoregressive series in its stationary state."""
    e = [rng.gauss(0, deviation)]
    for _ in range(count - 1):
        e.append(correlation * e[-1] + math.sqrt(1 - correlation**2) * rng.gauss(0, deviation))
    return e


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("since", [lambda i: 1, lambda i: i // 25])
def test_the_standard_error_is_the_scatter_of_the_slope(correlation, since):
    """Also where neighbouring steps err alike; without the correction it would be 0.42 of that at 0.7."""
    rng = random.Random(1)
    found = [trend(steps(noise(rng, 50, 0.02, correlation), since)) for _ in range(300)]
    assert 0.8 < fmean(t.error for t in found) / stdev(t.slope for t in found) < 1.35
    assert fmean(t.bound > 0 for t in found) > 0.92  # the bound holds with 95 % confidence


# -- plateaus -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rewards", "over"), [
    ([0.5] * 49, False),                                     # less than a window
    ([0.5] * 50, True),
    ([0.5 - 0.01 * i for i in range(50)], True),             # falling is not growing
    ([0.5 + 0.0003 * i for i in range(50)], False),          # 0.015 in 50 steps
    ([0.5 + 0.0001 * i for i in range(50)], True),           # 0.005 in 50 steps
    ([0.0, 0.9] * 10 + [0.5] * 50, True),                    # only the last window counts
    ([0.5 + 0.2 * (-1) ** (i // 3) for i in range(50)], False),  # flat, but nobody can know
])
def test_a_plateau_is_a_growth_known_to_be_small(rewards, over):
    assert bool(ended(PLATEAU, steps(rewards), 0)) is over


def test_the_reason_names_the_growth_and_its_uncertainty():
    assert ended(PLATEAU, steps([0.5] * 50), 0) == ("plateau after 50 steps: reward grows by +0.0000 ± 0.0000 in 50 "
                                                    "steps, with 95% confidence by less than +0.0000")


def test_plateau_waits_for_min_steps():
    flat = stage(until="plateau", window=5, min_steps=12)
    assert ended(flat, steps([0.5] * 11), 0) is None
    assert ended(flat, steps([0.5] * 12), 0)


def test_plateau_waits_for_cooldown_after_the_prompts_changed():
    cooling = stage(until="plateau", window=20, cooldown=8)
    assert ended(cooling, steps([0.5] * 40, since=lambda i: 1), 0)
    changed = steps([0.5] * 40, since=lambda i: 1 + (i >= 32))
    assert ended(cooling, changed[:32], 0) and ended(cooling, changed, 0)
    assert not any(ended(cooling, changed[:n], 0) for n in range(33, 40))


def ends(curve, rng, deviation, correlation, limit):
    """The step at which a default plateau stage of noisy rewards ends; every 60 steps resampling takes 0.05 away."""
    errors = noise(rng, limit, deviation, correlation)
    rewards = steps([curve(i) - 0.05 * (i // 60) + e for i, e in enumerate(errors)], since=lambda i: i // 60)
    return next((n for n in range(PLATEAU.window, limit + 1) if ended(PLATEAU, rewards[:n], 0)), None)


@pytest.mark.parametrize(("deviation", "correlation", "delay"), [(0.015, 0.0, 20), (0.015, 0.5, 70)])
def test_growth_in_noise_goes_on_and_flatness_ends(deviation, correlation, delay):
    """0.1 a window grows for 200 steps; a flat curve ends soon after the first window. docs/curriculum.md has more."""
    rng = random.Random(1)
    growing = [ends(lambda i: 0.3 + 0.002 * i, rng, deviation, correlation, 200) for _ in range(15)]
    flat = sorted(ends(lambda i: 0.5, rng, deviation, correlation, 400) or 400 for _ in range(15))
    assert sum(n is not None for n in growing) <= 1
    assert flat[7] <= PLATEAU.window + delay
