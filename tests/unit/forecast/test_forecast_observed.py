"""What is read from a ledger, and the signal of a group."""

import itertools
import math

import numpy as np
import pytest
from ledgers import write

from srpo.control.ledger import Decision, Ledger, RolloutRow
from srpo.errors import UserError
from srpo.forecast.observed import observed, signal
from srpo.forecast.predict import forecast


def step(ledger, epoch, step, domain, **correct):
    ledger.append([RolloutRow(epoch, step, "one", prompt, s, domain, float(s < k), 0.0, 9, False)
                   for prompt, k in correct.items() for s in range(4)], unused=["b"] if epoch == 2 else [])


@pytest.fixture
def run(tmp_path):
    """Maths a to d; a is gone after the first epoch, c was not seen in the second; a code prompt left between."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    step(ledger, 1, 1, "math", a=4, b=1)
    step(ledger, 1, 2, "math", c=1, d=0)
    step(ledger, 1, 3, "code", z=3)
    ledger.close_epoch(1, "one", [Decision("a", "dropped", "4 of 4 correct")])
    step(ledger, 2, 4, "math", b=2, d=0)
    ledger.close_epoch(2, "one", [])
    step(ledger, 3, 5, "math", b=4)
    ledger.close()
    return tmp_path


def test_histories_and_how_many_prompts_share_them(run):
    seen = observed(run)
    named = {tuple(seen.outcomes[code] if code >= 0 else None for code in history): int(n)
             for history, n in zip(seen.histories, seen.prompts, strict=True)}
    assert named == {((4, 4), None): 1, ((4, 1), (4, 2)): 1, ((4, 1), None): 1, ((4, 0), (4, 0)): 1}
    assert (seen.epochs, seen.samples, seen.prompts_per_step) == ([1, 2], 4, 2)


def test_the_signal_is_of_the_groups_that_were_trained_on(run):
    root = 2 * math.sqrt(3) / 4  # a quarter, and three quarters, correct
    # the only code group of the first epoch had an outcome that no maths group had; b was not trained on in the second
    np.testing.assert_allclose(observed(run).signals, [2 * root / 2, 0.0])


def test_only_the_first_epochs_on_request(run):
    seen = observed(run, 1)
    assert seen.epochs == [1] and seen.histories.shape[1] == 1 and seen.prompts.sum() == 5  # z was in epoch 1


def test_epochs_before_the_domain_joined_are_left_out(run):
    ledger = Ledger(run / "ledger.sqlite")
    step(ledger, 3, 6, "code", y=2)
    ledger.close_epoch(3, "code", [])
    assert observed(run).epochs == [1, 2, 3]
    step(ledger, 4, 7, "other", q=2)
    ledger.close_epoch(4, "other", [])
    ledger.close()
    seen = observed(run)
    assert (seen.epochs, seen.stages, seen.prompts.tolist()) == ([4], ["other"], [1])


def test_a_long_run_is_cut_to_its_latest_epochs(run, monkeypatch):
    whole = observed(run)
    monkeypatch.setattr("srpo.forecast.observed.LATEST", 1)
    seen = observed(run)
    named = {seen.outcomes[code]: int(n) for (code,), n in zip(seen.histories, seen.prompts, strict=True)}
    # a and c were in epoch 1 alone; of b and d the second counts
    assert seen.epochs == [2] and named == {(4, 4): 1, (4, 1): 1, (4, 2): 1, (4, 0): 1}
    np.testing.assert_allclose(seen.signals, whole.signals[-1:])


def test_a_domain_that_comes_back_after_the_latest_epochs_began(tmp_path, monkeypatch):
    monkeypatch.setattr("srpo.forecast.observed.LATEST", 3)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for epoch, domain in enumerate(["math", "code", "code", "math"], 1):
        step(ledger, epoch, epoch, domain, **{f"{domain}{i}": i for i in range(5)})
        ledger.close_epoch(epoch, domain, [])
    ledger.close()
    seen = observed(tmp_path)
    assert (seen.epochs, seen.stages, seen.histories.shape) == ([4], ["math"], (5, 1))
    assert forecast(tmp_path, 2)["epochs_seen"] == [4]


def test_a_ledger_without_a_closed_epoch(tmp_path):
    Ledger(tmp_path / "ledger.sqlite").close()
    with pytest.raises(UserError, match="no epoch has closed yet"):
        observed(tmp_path)


def test_more_rows_than_are_read_at_a_time(tmp_path, monkeypatch):
    truth = write(tmp_path / "ledger.sqlite", prompts=60, epochs=3)
    whole = observed(tmp_path)
    monkeypatch.setattr("srpo.forecast.observed._ROWS", 7)
    parts = observed(tmp_path)
    np.testing.assert_array_equal(whole.histories, parts.histories)
    np.testing.assert_array_equal(whole.prompts, parts.prompts)
    assert [int((whole.histories[:, e] >= 0) @ whole.prompts) for e in range(3)] == truth.prompts


def test_signal_is_the_policy_gradient_of_one_log_odds():
    """Directly: the group's mean of standardized reward times d log pi / dx, whatever the probability p."""
    samples, p = 6, 0.37
    for k in range(1, samples):
        rewards = [1] * k + [0] * (samples - k)
        mean = k / samples
        std = math.sqrt(mean * (1 - mean))
        gradient = sum((r - mean) / std * (r - p) for r in rewards) / samples
        assert signal(samples)[k] == pytest.approx(2 * gradient)
    assert signal(samples)[0] == signal(samples)[samples] == 0
    assert all(a == pytest.approx(b) for a, b in itertools.pairwise((signal(4)[1], signal(4)[3])))
