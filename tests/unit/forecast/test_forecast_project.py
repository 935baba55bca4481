"""Projections against enumeration, and what samplers have in common."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ledgers import write

from srpo.config import Resample
from srpo.control.resample import sampler
from srpo.control.sampler import Sampler
from srpo.forecast.efficiency import efficiency
from srpo.forecast.growth import Growth, growth
from srpo.forecast.latent import GRID, fit, kernel, latest
from srpo.forecast.observed import observed
from srpo.forecast.predict import back_test, forecast
from srpo.forecast.project import binomial, project

NONE = Growth(0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    write(run / "ledger.sqlite", prompts=600, samples=16, epochs=2)
    data = observed(run)
    return data, fit(data)


def rule(name, **settings):
    return sampler(Resample.model_validate({"sampler": name, **settings}))


def test_binomial_is_the_binomial():
    p = 1 / (1 + math.exp(0.7))
    expected = [math.comb(5, k) * p**k * (1 - p) ** (5 - k) for k in range(6)]
    np.testing.assert_allclose(binomial(np.array([-0.7]), 5)[0], expected)
    np.testing.assert_allclose(binomial(np.array([-800.0, 800.0]), 5)[:, [0, -1]], [[1, 0], [0, 1]])


@pytest.mark.parametrize("drop_at", [1.0, 0.75])
def test_epoch_sizes_under_history_resampling_in_expectation(seen, drop_at):
    """n'(x) = n(x) (1 - P(at least drop_at of G | x)), without growth; a step of each prompt's own between epochs."""
    data, fitted = seen
    history = rule("history", drop_at=drop_at)
    made = project(data, fitted, NONE, history, 4, 2000)
    mastered = binomial(GRID, 16)[:, math.ceil(drop_at * 16):].sum(1)
    last = np.array([data.outcomes[h[h >= 0][-1]][1] for h in data.histories])
    state = latest(data, fitted, (last >= drop_at * 16).astype(np.int64))[0]
    for e in range(4):
        state = state @ kernel(0.0, fitted.spread)
        assert made.prompts[:, e].mean() == pytest.approx(state.sum(), rel=0.005)
        state = state * (1 - mastered)


def test_nothing_leaves_under_plain_and_dynamic_sampling(seen):
    plain, dynamic = (project(*seen, NONE, rule(name), 5, 50) for name in ("plain", "dynamic"))
    assert (plain.prompts == 600).all()
    np.testing.assert_array_equal(plain.informative, dynamic.informative)


def test_groups_that_are_thrown_away_teach_nothing(seen):
    class Half(Sampler):
        def trained(self, mixed, prompts):
            return [i for i in range(len(mixed)) if mixed[i]][::2]

    data, fitted = replace(seen[0], trained=np.zeros_like(seen[0].trained)), seen[1]  # no growth before the first
    slow, half, fast = (project(data, fitted, Growth(rate, 0.0, 0.0), sampler, 3, 200).informative.mean(0)
                        for rate, sampler in ((0.1, Sampler()), (0.2, Half()), (0.2, Sampler())))
    assert half[0] == slow[0] == fast[0]
    assert half[1:] == pytest.approx(slow[1:], rel=0.01) and (half[1:] > 1.02 * fast[1:]).all()


def test_no_positive_is_history_at_nine_tenths(seen):
    one, other = (project(*seen, growth(*seen), r, 5, 50)
                  for r in (rule("no_positive"), rule("history", drop_at=0.9)))
    np.testing.assert_array_equal(one.prompts, other.prompts)
    np.testing.assert_array_equal(one.informative, other.informative)


def test_the_same_again(seen):
    one, other = (project(*seen, growth(*seen), rule("history"), 5, 50) for _ in range(2))
    np.testing.assert_array_equal(one.prompts, other.prompts)


def test_what_leaves_for_an_epoch_returns(seen):
    data, fitted = seen
    made = project(data, fitted, NONE, rule("history", epochs=1), 6, 300)
    right = np.array([[data.outcomes[code][1] if code >= 0 else -1 for code in history] for history in data.histories])
    # In epoch 3 those that left after the first are back, and those that left after the second are not.
    assert (made.prompts[:, 0] == 600 - data.prompts[right[:, 1] == 16].sum()).all()
    away = 600 - made.prompts[:, 1:]
    assert (away > 0).all() and (away <= made.prompts[:, :-1] - made.informative[:, :-1]).all()


def test_faster_growth_empties_the_data_sooner(seen):
    slow, fast = (project(*seen, Growth(rate, 0.0, 0.0), rule("history"), 6, 20).prompts[:, -1].mean()
                  for rate in (0.05, 0.2))
    assert fast < 0.8 * slow


# -- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompts", "informative"), [(50_000, 0.3), (37, 0.54), (20, 0.02), (20, 0.0)])
def test_efficiency_without_refilling(prompts, informative):
    """Every informative group is used, however few there are."""
    assert efficiency(rule("plain"), prompts, 50, informative) == (math.ceil(prompts / 50), 1.0)


def test_efficiency_with_refilling():
    """Each step trains on informative groups alone, and some are left over: more steps than that cannot be."""
    count, used = efficiency(rule("dynamic"), 50_000, 50, 0.3)
    assert 0.9 * 300 < count <= 1.03 * 300 and used == pytest.approx(50 * count / 15_000, rel=0.03)


# -- whole forecasts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("known", "least", "size_error"), [(1, 0.75, 0.2), (2, 0.8, 0.08), (3, 0.9, 0.05)])
def test_back_test_on_known_ledgers(tmp_path, known, least, size_error):
    within, errors = [], []
    for seed in range(5):
        (run := tmp_path / str(seed)).mkdir()
        truth = write(run / "ledger.sqlite", prompts=300, samples=8, epochs=5, seed=seed, steps=2)
        made = back_test(run, known)
        assert [row["prompts"]["actual"] for row in made["epochs"]] == truth.prompts[known:]
        for row in made["epochs"]:
            within += [row["prompts"]["within"], row["informative_share"]["within"]]
            errors.append(abs(row["prompts"]["mid"] / row["prompts"]["actual"] - 1))
        # What leaves after the last known epoch is on record: nothing about the next one's size is uncertain.
        assert made["epochs"][0]["prompts"]["low"] == made["epochs"][0]["prompts"]["high"] == truth.prompts[known]
    assert np.mean(within) >= least and np.mean(errors) < size_error


@pytest.mark.parametrize("name", ["difficulty", "dynamic", "no_positive", "plain"])
def test_back_test_with_the_runs_own_sampler(tmp_path: Path, name):
    resample = Resample.model_validate({"sampler": name} | ({"epochs": 1} if name == "difficulty" else {}))
    write(tmp_path / "ledger.sqlite", prompts=600, samples=16, epochs=5, resample=resample, steps=2)
    made = back_test(tmp_path, 2, resample)
    for row in made["epochs"]:
        assert row["prompts"]["mid"] == pytest.approx(row["prompts"]["actual"], rel=0.12)
        assert row["informative_share"]["mid"] == pytest.approx(row["informative_share"]["actual"], abs=0.06)


def test_a_forecast_has_all_samplers_and_its_parts_agree(tmp_path):
    write(tmp_path / "ledger.sqlite", prompts=300, epochs=2, steps=3)
    made = forecast(tmp_path, 3)
    assert set(made["of"]) == {"history", "plain", "no_positive", "dynamic", "difficulty"}
    for of in made["of"].values():
        assert [row["epoch"] for row in of["epochs"]] == [3, 4, 5]
        for row in of["epochs"]:
            for value in row.values():
                if isinstance(value, dict):
                    assert value["low"] <= value["mid"] <= value["high"]
            assert row["rollouts"]["mid"] == 8 * row["prompts"]["mid"]
    plain = made["of"]["plain"]["epochs"][0]
    cost = 8 / plain["informative_share"]["mid"]
    assert plain["rollouts_per_informative_group"]["mid"] == pytest.approx(cost, rel=0.15)
    assert made["of"]["dynamic"]["epochs"][0]["steps"] < plain["steps"]


def test_data_run_out_when_growth_is_fast(tmp_path):
    write(tmp_path / "ledger.sqlite", prompts=200, epochs=4, first=1.5, steps=2)
    made = forecast(tmp_path, 1)
    out = made["of"]["history"]["runs_out"]
    assert 5 <= out["low"] <= out["mid"] and (out["high"] is None or out["mid"] <= out["high"])
