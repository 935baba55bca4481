"""What is taken from a ledger, what a sampler makes of it, and what is saved by which."""

import pytest
from jobs import config

from srpo.config import Resample
from srpo.control.ledger import Ledger, Outcome, RolloutRow
from srpo.control.resample import sampler
from srpo.errors import UserError
from srpo.plan.compare import compare
from srpo.plan.simulate import Decoder, Group
from srpo.plan.workload import Load, Workload, formed, recorded, tally, workload

PLAIN = Decoder(weights=1.0, product=0.0, sequence=0.0, cached=0.0, overhead=0.0, prefill=0.0, slots=100, capacity=1e9)
"""A second a step, whatever is in it."""
MIXED = Group(0, (5, 1), 2.0, correct=1, mixed=True, learns=True)
RIGHT = Group(0, (3, 1), 2.0, correct=2)


def dynamic(**settings):
    return Resample.model_validate({"sampler": "dynamic", **settings})


@pytest.fixture
def run(tmp_path):
    """Three epochs of two steps of two prompts: p1 and p3 always right, p0 and p2 mixed; the third has not closed."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for step in range(1, 7):
        epoch = (step + 1) // 2
        ledger.append([RolloutRow(epoch, step, "maths", f"p{p}", k, "math", float(p % 2 or k), 0.1 * k * (p == 1),
                                  100 * epoch + 10 * p + k, False)
                       for p in ((0, 1) if step % 2 else (2, 3)) for k in range(4)])
        if step in (2, 4):
            ledger.close_epoch(epoch, "maths", [])
    ledger.close()
    return tmp_path


def small(**sections):
    return config(batch=dict(prompts=2, samples=4), **sections)


def test_the_latest_groups_of_a_ledger(run):
    groups, outcomes, origin = recorded(run, small(), 3)
    assert [g.lengths[0] for g in groups] == [310, 320, 330]  # p1 of step 5, p2 and p3 of step 6
    assert [g.expected for g in groups] == [211.5, 221.5, 231.5]  # each prompt's mean in the epoch before
    assert [(g.correct, g.mixed, g.learns) for g in groups] == [(4, False, True), (3, True, False), (4, False, False)]
    assert (origin.groups, origin.epoch, origin.sampler) == (12, 2, None)
    assert outcomes == {Outcome(4, 3, True): (2, 4 * (201.5 + 221.5)), Outcome(4, 4, False): (2, 4 * (211.5 + 231.5))}


def test_all_groups_where_there_are_fewer(run):
    groups, _, _ = recorded(run, small(), 100)
    assert len(groups) == 12 and groups[0].lengths == (100, 101, 102, 103)
    assert [g.expected for g in groups[:4]] == [pytest.approx(166.5)] * 4  # nothing known: the mean of what is
    work = workload(small(), run)
    assert [len(step.groups) for step in work.steps] == [2] * 4 and work.groups == groups[-8:]


def test_groups_have_as_many_responses_as_the_configuration_says(run):
    fewer, more = (recorded(run, config(batch=dict(samples=n)), 1)[0][0] for n in (2, 6))
    assert fewer.lengths == (330, 331) and fewer.outcome == (2, 2, False)
    assert more.lengths == (330, 331, 332, 333, 330, 331) and more.outcome == (6, 6, False)


def test_rows_after_a_rollback_are_found(run):
    ledger = Ledger(run / "ledger.sqlite")
    position = ledger.position()
    ledger.append([RolloutRow(3, 7, "maths", "p9", k, "math", 0.0, 0.0, 999, False) for k in range(4)])
    ledger.rollback(position)
    ledger.append([RolloutRow(3, 7, "maths", "p8", k, "math", 0.0, 0.0, 888, False) for k in range(4)])
    ledger.close()
    assert [g.lengths[0] for g in recorded(run, small(), 2)[0]] == [330, 888]


def test_an_empty_ledger(tmp_path):
    Ledger(tmp_path / "ledger.sqlite").close()
    with pytest.raises(UserError, match="holds no rollouts yet"):
        recorded(tmp_path, config(), 1)


def test_an_unreadable_ledger(tmp_path):
    (tmp_path / "ledger.sqlite").write_text("no database, but long enough to be looked at as one " * 20)
    with pytest.raises(UserError, match="cannot read or write the ledger: file is not a database"):
        recorded(tmp_path, config(), 1)


def test_steps_are_those_of_the_sampler():
    groups = [MIXED, RIGHT, RIGHT, MIXED, MIXED, RIGHT]
    one, two = formed(sampler(Resample(sampler="plain")), groups, 4, 2)
    assert one.rounds == [groups[:4]] and one.trained == groups[:4]
    assert two.groups == [MIXED, RIGHT, MIXED, RIGHT]  # the groups come round again
    (step,) = formed(sampler(dynamic()), groups, 2, 1)
    assert step.rounds == [[MIXED, RIGHT], [RIGHT, MIXED]] and step.trained == [MIXED, MIXED]


def test_a_step_of_several_rounds_takes_the_time_of_all_and_trains_on_some():
    """A replica each for two groups; the longest of a round has 5 tokens, a second each."""
    groups = [MIXED, RIGHT, RIGHT, MIXED] * 2
    work = Workload(groups, formed(sampler(dynamic()), groups, 2, 2), tally(groups))
    assert work.generated == Load(8, 20, 20, 2 * (25 + 1 + 9 + 1))
    assert work.trained == work.learning == Load(4, 12, 12, 2 * (25 + 1))
    found = compare(PLAIN, work, 2, 1.25, dynamic(), 2)
    assert found.balanced == found.random == 10 and found.over_sampled is None
    plain, history, own = found.samplers
    assert [(s.sampler, s.configured, s.recorded) for s in (plain, history, own)] == [
        ("plain", False, False), ("history", False, False), ("dynamic", True, False)]
    assert (plain.rounds, plain.groups, plain.no_advantage, plain.seconds, plain.seconds_for_a_batch) == (
        1, 2, 0.5, 5, 10)
    assert (history.dropped, history.no_advantage, history.seconds_for_a_batch) == (4 * 4 / (4 * 4 + 4 * 6), 0, 5)
    assert (own.dropped, own.rounds, own.groups, own.no_advantage, own.seconds, own.seconds_for_a_batch) == (
        0, 2, 4, 0, 10, 10)


def test_the_runs_sampler_is_replayed_with_its_settings(run):
    (run / "config.yaml").write_text(
        "run: x\nmodel: {path: m}\ndata: {train: [t]}\nstages: [{name: a, domains: [math], until: epochs, epochs: 1}]\n"
        "resample: {sampler: history, drop_at: 0.75}\n")
    work = workload(small(), run)
    found = compare(PLAIN, work, 2, 1.25, Resample(), 2).samplers
    assert [(s.sampler, s.configured, s.recorded) for s in found] == [
        ("plain", False, False), ("history", True, False), ("history (drop_at 0.75)", False, True)]
    # three of four right leave with drop_at 0.75 too: nothing stays
    assert [s.dropped for s in found] == [0, pytest.approx(443 / 866), 1]
    assert found[2].seconds == 0 and found[2].seconds_for_a_batch is None


def test_comparison_of_log_normal_lengths():
    loaded = Decoder(weights=0.01, product=0.0, sequence=1e-5, cached=1e-8, overhead=0.0, prefill=0.0, slots=64,
                     capacity=1e9)
    made = config(batch=dict(prompts=64, samples=8))
    found = compare(loaded, workload(made, None), 8, 1.25, made.resample, 64)
    assert found.even <= found.foreseen <= found.balanced <= found.random
    assert found.over_sampled is not None and found.over_sampled < found.balanced
    plain, history = found.samplers
    assert 0.4 < plain.no_advantage < 0.7 and history.no_advantage < plain.no_advantage - 0.1
    assert history.seconds_for_a_batch < plain.seconds_for_a_batch
