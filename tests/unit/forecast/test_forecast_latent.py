"""The fit against closed forms and known truths."""

import math

import numpy as np
import pytest
from ledgers import write

from srpo.forecast import latent
from srpo.forecast.growth import ASSUMED, VARIES, growth
from srpo.forecast.latent import GRID, emission, fit, kernel, latest
from srpo.forecast.observed import Observed, observed
from srpo.forecast.project import binomial


def seen(histories, prompts, samples, epochs=1):
    """Outcome k of `samples` has the code k."""
    histories = np.array(histories, np.int32).reshape(len(prompts), epochs)
    trained = np.array([[int(prompts[histories[:, e] == k].sum()) for k in range(samples + 1)] for e in range(epochs)])
    return Observed(list(range(1, epochs + 1)), ["one"] * epochs, [(samples, k) for k in range(samples + 1)], histories,
                    prompts, trained, samples, 64)


def beta_binomial(a, b, samples):
    """Of each number of correct responses under Beta(a, b); Beta functions by their products."""
    def ascending(x, n):
        return math.prod(x + i for i in range(n))
    return np.array([math.comb(samples, k) * ascending(a, k) * ascending(b, samples - k) / ascending(a + b, samples)
                     for k in range(samples + 1)])


@pytest.mark.parametrize(("a", "b"), [(2, 3), (1, 1), (0.5, 0.5), (4, 1)])
def test_all_correct_under_a_beta_distribution(a, b):
    """P(G of G) = B(a + G, b) / B(a, b), and after a group that was all correct B(a + 2G, b) / B(a + G, b)."""
    samples = 16
    prompts = np.round(beta_binomial(a, b, samples) * 1e6).astype(np.int64)
    data = seen(range(samples + 1), prompts, samples)
    fitted = fit(data)
    again = binomial(GRID, samples)[:, -1]
    assert fitted.weights[0] @ again == pytest.approx(beta_binomial(a, b, samples)[-1], rel=0.02)
    last = latest(data, fitted, np.arange(samples + 1))[-1]
    assert last @ again / last.sum() == pytest.approx(
        beta_binomial(a, b, 2 * samples)[-1] / beta_binomial(a, b, samples)[-1], rel=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_growth_is_found_within_its_error(tmp_path, seed):
    truth = write(tmp_path / "ledger.sqlite", prompts=1500, samples=16, epochs=3, seed=seed)
    fitted = fit(observed(tmp_path))
    assert fitted.growth == pytest.approx(truth.growth[:2], abs=0.12)
    assert (np.abs(fitted.growth - truth.growth[:2]) < 3.5 * fitted.error).all()
    assert (fitted.error < 0.05).all() and 0.2 <= fitted.spread < 0.5


def test_dropped_prompts_do_not_bias_the_growth(tmp_path):
    """Those that stay were all wrong or unlucky once: their pass rates rise by more than the policy grew."""
    truth = write(tmp_path / "ledger.sqlite", prompts=3000, samples=4, epochs=2, first=0.3)
    data = observed(tmp_path)
    both = (data.histories >= 0).all(1)
    rates = np.array([k for _, k in data.outcomes])[data.histories[both]] / 4
    means = np.average(rates, axis=0, weights=data.prompts[both])
    naive = np.diff(np.log(means / (1 - means)))[0]
    assert abs(fit(data).growth[0] - truth.growth[0]) < 0.1 < abs(naive - truth.growth[0])


def test_an_epoch_without_the_prompt_adds_nothing():
    data = seen([[3, -1], [1, 2], [-1, 4]], np.array([10, 20, 30]), 4, epochs=2)
    fitted = fit(data)
    state = fitted.weights[0] * emission(data.outcomes)[3]
    moved = state / state.sum() @ kernel(fitted.growth[0], fitted.spread)
    np.testing.assert_allclose(latest(data, fitted, np.arange(3))[0], 10 * moved, rtol=1e-9)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_harder_prompts_that_join_later_do_not_look_like_lost_skill(gain):
    """Beta(8, 8) in both epochs, better by `gain` in the second, which Beta(1, 12) joins; in expectation."""
    p = (np.arange(4000) + 0.5) / 4000
    x = np.log(p / (1 - p))
    density = (p * (1 - p)) ** 7
    both = (density / density.sum() * binomial(x, 8).T) @ binomial(x + gain, 8)
    new = beta_binomial(1, 12, 8)
    histories = [(i, j) for i in range(9) for j in range(9)] + [(-1, k) for k in range(9)]
    data = seen(histories, np.round(np.concatenate([both.ravel(), new]) * 1e5).astype(np.int64), 8, epochs=2)
    fitted = fit(data)
    assert fitted.growth[0] == pytest.approx(gain, abs=0.03)
    assert fitted.weights[1] @ binomial(GRID, 8) == pytest.approx(new, abs=0.01)


def test_every_prompt_is_somewhere():
    data = seen([[3, -1], [1, 2], [-1, 4]], np.array([10, 20, 30]), 4, epochs=2)
    np.testing.assert_allclose(latest(data, fit(data), np.array([0, 1, 1])).sum(1), [10, 50])


def test_many_histories_are_thinned_and_agree(tmp_path, monkeypatch):
    write(tmp_path / "ledger.sqlite", prompts=2000, samples=16, epochs=3)
    data = observed(tmp_path)
    whole = fit(data)
    monkeypatch.setattr(latent, "_MOST", 400)
    assert len(data.prompts) > 400
    thin = fit(data)
    assert thin.growth == pytest.approx(whole.growth, abs=0.2) and (thin.error > whole.error).all()
    np.testing.assert_array_equal(thin.growth, fit(data).growth)


def test_growth_is_assumed_after_one_epoch(tmp_path):
    write(tmp_path / "ledger.sqlite", prompts=60, epochs=1)
    data = observed(tmp_path)
    grows = growth(data, fit(data))
    assert grows.rate * data.signals[0] == pytest.approx(ASSUMED[0])
    assert grows.error * data.signals[0] == pytest.approx(ASSUMED[1])


def test_the_rate_is_growth_over_signal(tmp_path):
    write(tmp_path / "ledger.sqlite", epochs=2)
    data = observed(tmp_path)
    fitted = fit(data)
    grows = growth(data, fitted)
    assert grows.rate == pytest.approx(fitted.growth[0] / data.signals[0])
    assert grows.varies == pytest.approx(VARIES * grows.rate)
    draws = grows.draws(np.random.default_rng(0), 4000, 3)
    assert draws.mean() == pytest.approx(grows.rate, rel=0.05)
    assert draws.std(0) == pytest.approx(math.hypot(grows.error, grows.varies), rel=0.05)
