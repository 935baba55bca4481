"""The simulator: conservation, closed forms, what samplers have in common, memory."""

import math
import tracemalloc

import numpy as np
import pytest

from srpo.config import Resample
from srpo.control.resample import sampler
from srpo.forecast.compare import SAMPLERS, compare
from srpo.forecast.simulate import Scenario, simulate

SMALL = Scenario(prompts=4000, samples=8, batch=100, epochs=4)


def rule(name, **settings):
    return sampler(Resample.model_validate({"sampler": name, **settings}))


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_lost(name):
    run = simulate(SMALL, rule(name))
    for epoch, following in zip(run.epochs, run.epochs[1:], strict=False):
        assert epoch.complete and 0 <= epoch.dropped <= epoch.seen
        if following.complete:
            assert following.seen == epoch.seen - epoch.dropped
        assert epoch.trained <= epoch.seen and epoch.informative <= epoch.seen
    assert run.rollouts[-1] == 8 * sum(epoch.seen for epoch in run.epochs)
    assert len(run.skill) == 1 + sum(epoch.steps for epoch in run.epochs)
    assert run.rollouts[-1] < 4 * 4000 * 8 + 3 * 10 * 100 * 8 and np.all(np.diff(run.skill) >= 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_the_same_run(name):
    one, other = simulate(SMALL, rule(name)), simulate(SMALL, rule(name))
    assert one.skill == other.skill and one.epochs == other.epochs


def test_no_positive_is_history_at_nine_tenths():
    one, other = simulate(SMALL, rule("no_positive")), simulate(SMALL, rule("history", drop_at=0.9))
    assert one.skill == other.skill and one.epochs == other.epochs


def test_epoch_sizes_of_a_policy_that_stands_still():
    """After e epochs sum_i (1 - p_i^G)^e prompts are left, in expectation; Gauss-Hermite over the difficulty."""
    still = Scenario(prompts=50_000, samples=4, batch=1000, epochs=3, growth=0.0, unsolvable=0.1)
    run = simulate(still, rule("history"))
    x, w = np.polynomial.hermite_e.hermegauss(201)
    mastered = (1 / (1 + np.exp(still.spread * x - still.skill))) ** 4
    for e, epoch in enumerate(run.epochs):
        if epoch.complete:
            left = 0.1 + 0.9 * (w / w.sum()) @ (1 - mastered) ** e
            assert epoch.seen == pytest.approx(50_000 * left, rel=0.01)
    assert len(run.epochs) > 3 and run.skill[-1] == still.skill


def test_gain_of_a_step():
    """Every prompt at p = 1/2: E[2 sqrt(k/G (1 - k/G))] under Binomial(G, 1/2), times the rate."""
    even = Scenario(prompts=20_000, samples=4, batch=20_000, epochs=1, skill=0.0, spread=0.0, unsolvable=0.0,
                    growth=3.0)
    expected = sum(math.comb(4, k) / 16 * 2 * math.sqrt(k / 4 * (1 - k / 4)) for k in range(5))
    assert simulate(even, rule("plain")).skill == pytest.approx([0.0, 3 * expected], rel=0.01)


def test_gain_of_a_step_that_was_refilled():
    """Only its mixed groups count: the same, under the condition that k is neither 0 nor G."""
    even = Scenario(prompts=20_000, samples=4, batch=5000, epochs=1, skill=0.0, spread=0.0, unsolvable=0.0, growth=3.0)
    expected = sum(math.comb(4, k) / 14 * 2 * math.sqrt(k / 4 * (1 - k / 4)) for k in range(1, 4))
    assert simulate(even, rule("dynamic")).skill[1] == pytest.approx(3 / 4 * expected, rel=0.01)


def test_accuracy_counts_every_prompt():
    scenario = Scenario(prompts=20_000, spread=2.0, unsolvable=0.2, epochs=1, batch=2000)
    run = simulate(scenario, rule("plain"))
    x, w = np.polynomial.hermite_e.hermegauss(101)
    for skill in (-1.0, 2.0):
        expected = 0.8 * (w / w.sum()) @ (1 / (1 + np.exp(2.0 * x - skill)))
        assert run.accuracy(skill) == pytest.approx(expected, abs=0.01)


def test_dynamic_sampling_trains_on_informative_groups_and_throws_others_away():
    run = simulate(SMALL, rule("dynamic"))
    plain = simulate(SMALL, rule("plain"))
    assert len(run.skill) < len(plain.skill)
    for epoch in run.epochs[:-1]:
        assert 0.93 * epoch.informative < epoch.trained < 1.02 * epoch.informative


def test_dropped_prompts_return_after_their_epochs():
    run = simulate(Scenario(prompts=4000, samples=8, batch=100, epochs=5), rule("history", epochs=1))
    first, second, third = run.epochs[:3]
    assert second.seen == 4000 - first.dropped
    assert third.seen == 4000 - second.dropped  # those of the first are back


def test_a_run_ends_when_no_step_can_be_filled():
    run = simulate(Scenario(prompts=1000, samples=4, batch=200, epochs=50, growth=8.0, unsolvable=0.0), rule("history"))
    assert run.rollouts[-1] < 50 * 1000 * 4 and run.epochs[-1].complete
    assert run.epochs[-1].seen - run.epochs[-1].dropped < 200
    assert run.skill_at(1e12) == run.skill[-1] and run.rollouts_to(1e9) is None


def test_comparison_at_equal_rollouts_and_steps():
    made = compare(SMALL)
    assert set(made["of"]) == set(SAMPLERS) and made["assumptions"]
    for run in made["of"].values():
        assert run["accuracy"]["0"] == pytest.approx(made["of"]["plain"]["accuracy"]["0"])
        assert run["curve"][0]["rollouts"] == 0 and run["curve"][-1]["rollouts"] == run["rollouts"]
        assert run["rollouts_uninformative"] == pytest.approx((1 - run["informative_share"]) * run["rollouts"])
    assert made["of"]["plain"]["rollouts_not_trained_on"] == 0 < made["of"]["dynamic"]["rollouts_not_trained_on"]
    assert made["of"]["plain"]["rollouts_to_plain"] == made["of"]["plain"]["rollouts"] == 4 * 4000 * 8
    assert made["equal_steps"] == min(run["steps"] for run in made["of"].values())


def test_a_million_prompts_in_bounded_memory():
    tracemalloc.start()
    try:
        simulate(Scenario(epochs=1, batch=4096), rule("history"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6
