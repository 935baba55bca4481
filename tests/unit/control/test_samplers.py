"""The samplers by themselves, and what a run makes of them: who takes part, how a step is filled, what is recorded.

How many of a group's four responses are right is a function of (prompt, epoch)."""

import json
import sqlite3

import pytest

from srpo.config import Resample, Stage
from srpo.control import Curriculum, Ledger, RolloutRow
from srpo.control.ledger import Outcome
from srpo.control.resample import sampler
from srpo.errors import UserError

SAMPLES = 4
NAMES = ("history", "plain", "no_positive", "dynamic", "difficulty")


def outcome(correct, samples=10):
    return Outcome(samples, correct, 0 < correct < samples)


def dropped(resample):
    """Numbers of right responses of ten after which a prompt leaves."""
    s = sampler(resample)
    return {n for n in range(11) if s.drop(outcome(n))}


def test_who_leaves_after_an_epoch():
    assert dropped(Resample(sampler="plain")) == dropped(Resample(sampler="dynamic")) == set()
    assert dropped(Resample()) == {10} and dropped(Resample(drop_at=0.7)) == {7, 8, 9, 10}
    assert dropped(Resample(sampler="no_positive")) == {9, 10}
    assert dropped(Resample(sampler="no_positive", drop_at=1.0)) == {10}
    assert dropped(Resample(sampler="difficulty")) == {0, 10}
    assert dropped(Resample(sampler="difficulty", low=0.0, high=0.5)) == {6, 7, 8, 9, 10}


def test_for_how_long():
    assert [sampler(Resample(sampler=s, epochs=3)).away for s in ("history", "difficulty")] == [3, 3]
    assert {sampler(Resample(sampler=s)).away for s in NAMES} == {None}


def test_reasons_are_readable():
    assert sampler(Resample()).drop(outcome(10)) == "10 of 10 correct"
    hard = sampler(Resample(sampler="difficulty", low=0.25, high=0.75))
    assert hard.drop(outcome(1)) == "1 of 10 correct, below 0.25"
    assert hard.exclude(0.875) == "measured pass rate 0.875, above 0.75"
    assert hard.exclude(0.25) is hard.exclude(0.75) is None


def test_only_difficulty_heeds_what_was_measured():
    for name in ("history", "plain", "no_positive", "dynamic"):
        assert sampler(Resample(sampler=name)).exclude(1.0) is None


def test_a_refill_asks_for_what_the_missing_groups_should_need():
    s = sampler(Resample(sampler="dynamic", max_rounds=4))
    assert s.refill(prompts=8, asked=8, mixed=4, rounds=1) == 8  # half are mixed, four are missing
    assert s.refill(prompts=8, asked=8, mixed=7, rounds=1) == 2  # 8/7 rounded up
    assert s.refill(prompts=8, asked=8, mixed=1, rounds=1) == s.refill(8, 8, 0, 1) == 24  # three times the step at most
    assert s.refill(prompts=8, asked=8, mixed=8, rounds=1) == s.refill(8, 40, 9, 2) == 0
    assert s.refill(prompts=8, asked=8, mixed=4, rounds=3) == 8 and s.refill(8, 8, 4, 4) == 0


def test_a_step_trains_on_mixed_groups_and_on_others_only_where_they_are_too_few():
    s = sampler(Resample(sampler="dynamic"))
    assert s.trained([True, False, True, True, False], prompts=3) == [0, 2, 3]
    assert s.trained([True, True, False, True], prompts=2) == [0, 1]  # the third mixed one is surplus
    assert s.trained([False, False, True, False], prompts=3) == [0, 1, 2]
    assert s.trained([False, False], prompts=3) == [0, 1]
    for name in ("history", "plain", "no_positive", "difficulty"):
        assert sampler(Resample(sampler=name)).trained([False, True, False], prompts=3) == [0, 1, 2]
        assert sampler(Resample(sampler=name)).refill(3, 3, 0, 1) == 0


# -- in a run -------------------------------------------------------------------------------------------------------

PROBLEMS = {f"m{i}": "math" for i in range(10)}


def rows(plan, right):
    return [RolloutRow(plan.epoch, plan.step, plan.stage, p, k, "math", float(k < right(p, plan.epoch)),
                       float(k < right(p, plan.epoch)), 10, False) for p in plan.prompt_ids for k in range(SAMPLES)]


def run(curriculum, right, steps=1000):
    """What srpo/train.py does: round after round until the sampler is content."""
    plans = []
    while len(plans) < steps and (plan := curriculum.next()):
        while more := curriculum.refill(plan, rows(plan, right)):
            plan = more
        plans.append(plan)
        curriculum.record(plan, rows(plan, right))
    return plans


@pytest.fixture
def make(tmp_path):
    def make(config, name="ledger.sqlite", epochs=3, pass_rates=None, stages=None):
        ledger = Ledger(tmp_path / name)
        ledger._db.execute("PRAGMA synchronous = OFF")
        stages = stages or [Stage(name="one", domains=["math"], until="epochs", epochs=epochs)]
        return Curriculum(PROBLEMS, stages, config, 3, 1, ledger, pass_rates=pass_rates)
    return make


def query(curriculum, sql):
    return list(sqlite3.connect(curriculum._ledger.path).execute(sql))


def half(prompt, epoch):
    """m0 .. m4 are mixed, m5 .. m7 never and m8, m9 always right."""
    n = int(prompt[1:])
    return 2 if n < 5 else 0 if n < 8 else SAMPLES


DYNAMIC = Resample(sampler="dynamic")


def test_dynamic_sampling_fills_a_step_with_mixed_groups(make):
    c = make(DYNAMIC, epochs=1)
    first, *others = run(c, half)
    assert first.rounds > 1 and first.done < len(first.prompt_ids) == first.finish == len(first.lengths)
    trained = query(c, "SELECT prompt_id, mixed FROM prompts WHERE step = 1 AND trained")
    assert len(trained) == 3 and all(mixed for _, mixed in trained)
    everyone = [i for plan in [first, *others] for i in plan.prompt_ids]
    assert sorted(everyone) == sorted(PROBLEMS), "an epoch is one pass all the same"
    assert {p for p, in query(c, "SELECT prompt_id FROM prompts")} == set(PROBLEMS), "the ledger holds them all"
    assert query(c, "SELECT COUNT(*) FROM rollouts") == [(len(PROBLEMS) * SAMPLES,)]


def test_a_step_without_enough_mixed_groups_takes_others_at_the_epoch_s_end(make):
    c = make(DYNAMIC, epochs=1)
    plans = run(c, lambda prompt, epoch: 2 if prompt == "m0" else 0)
    assert len(plans) == 1 and plans[0].rounds == 2, "nine more prompts at once: all that the epoch has"
    trained = [p for p, in query(c, "SELECT prompt_id FROM prompts WHERE trained")]
    others = [p for p in plans[0].prompt_ids if p != "m0"]
    assert sorted(trained) == sorted(["m0", *others[:2]])
    assert ("refill", "1 of 10 groups mixed after 2 rounds (the epoch has no more prompts): the step trains on 3 groups"
            ) in query(c, "SELECT kind, detail FROM events")


def test_at_the_cap_a_step_takes_others(make):
    config = Resample(sampler="dynamic", max_rounds=1)
    c = make(config, epochs=1)
    plans = run(c, lambda prompt, epoch: 0)
    assert [(len(p.prompt_ids), p.rounds) for p in plans] == [(3, 1), (3, 1), (3, 1), (1, 1)]
    assert query(c, "SELECT COUNT(*) FROM prompts WHERE NOT trained") == [(0,)]
    details = [d for d, in query(c, "SELECT detail FROM events WHERE kind = 'refill'")]
    assert details[0].startswith("0 of 3 groups mixed after 1 rounds (resample.max_rounds)") and len(details) == 4
    assert details[3].startswith("0 of 1 groups mixed after 1 rounds (the epoch has no more prompts)")


def test_a_refill_takes_nothing_before_it_is_recorded(make):
    c = make(DYNAMIC)
    plan = c.next()
    one = dict.fromkeys(plan.prompt_ids[:1], 2)
    more = c.refill(plan, rows(plan, lambda prompt, epoch: one.get(prompt, 0)))
    assert more.prompt_ids[:3] == plan.prompt_ids and len(more.prompt_ids) == 9, "two missing, one of three mixed"
    assert more == c.refill(plan, rows(plan, lambda prompt, epoch: one.get(prompt, 0))) and c.next() == plan
    none = rows(more, lambda prompt, epoch: 0)
    assert c.refill(more, none).prompt_ids[:9] == more.prompt_ids and len(c.refill(more, none).prompt_ids) == 10
    assert c.refill(c.refill(more, none), none) is None


def test_a_group_is_mixed_where_correctness_differs_and_not_where_the_reward_does(make):
    c = make(DYNAMIC)
    plan = c.next()
    a, b, d = plan.prompt_ids
    correct = {a: (0.5, 1.0), b: (1.0, 1.0), d: (0.0, 0.0)}
    reward = {a: (0.5, 0.5), b: (1.0, 1.1), d: (0.0, 0.0)}
    step = [RolloutRow(1, 1, "one", p, k, "math", correct[p][k], reward[p][k], 10, False)
            for p in plan.prompt_ids for k in range(2)]
    assert len(c.refill(plan, step).prompt_ids) == 9, "only the first is: two are missing, a third of the groups so far"
    assert c.record(plan, step) == [0, 1, 2]
    assert dict(query(c, "SELECT prompt_id, mixed FROM prompts")) == {a: 1, b: 0, d: 0}


def test_which_groups_a_step_trains_on(make):
    c = make(DYNAMIC, epochs=1)
    plan = c.next()
    while more := c.refill(plan, rows(plan, half)):
        plan = more
    chosen = c.record(plan, rows(plan, half))
    assert chosen == [i for i, p in enumerate(plan.prompt_ids) if half(p, 1) == 2][:3]


def test_other_samplers_train_on_all_and_record_no_refill(make):
    c = make(Resample(), epochs=1)
    plans = run(c, half)
    assert {p.rounds for p in plans} == {1} and query(c, "SELECT MIN(trained) FROM prompts") == [(1,)]
    assert query(c, "SELECT * FROM events WHERE kind = 'refill'") == []


def forgetful(prompt, epoch):
    return (int(prompt[1:]) * 7 + epoch * 3) % 5


MEASURED = {f"m{i}": i / 8 for i in range(9)}


@pytest.mark.parametrize("config", [
    DYNAMIC, Resample(sampler="dynamic", max_rounds=2), Resample(sampler="no_positive"),
    Resample(sampler="difficulty", low=0.25, high=0.75, epochs=1), Resample(sampler="difficulty")])
def test_resumed_anywhere_the_ledger_is_that_of_an_uninterrupted_run(make, config):
    whole = make(config, "whole", pass_rates=MEASURED)
    plans = run(whole, forgetful)
    expected = list(whole._ledger.dump())
    for saved_after in range(len(plans) + 1):
        killed = make(config, f"{saved_after}", pass_rates=MEASURED)
        run(killed, forgetful, steps=saved_after)
        plan = killed.next()
        state = json.loads(json.dumps(killed.state_dict()))
        if plan:
            killed.refill(plan, rows(plan, forgetful))
        run(killed, forgetful, steps=2)
        resumed = make(config, f"{saved_after}", pass_rates=MEASURED)
        resumed.load_state_dict(state)
        assert run(resumed, forgetful) == plans[saved_after:]
        assert list(resumed._ledger.dump()) == expected
        killed._ledger.close()
        resumed._ledger.close()


def test_a_measured_pass_rate_counts_until_the_run_has_its_own(make):
    config = Resample(sampler="difficulty", low=0.25, high=0.75, epochs=1)
    c = make(config, epochs=4, pass_rates={"m0": 1.0, "m1": 0.5, "m2": 0.0})
    plans = run(c, lambda prompt, epoch: 2 if prompt in ("m0", "m1") else 0)
    shown = {e: {i for p in plans if p.epoch == e for i in p.prompt_ids} for e in (1, 2, 3, 4)}
    rest = set(PROBLEMS) - {"m0", "m1", "m2"}
    assert shown[1] == {"m1"} | rest, "what was never measured takes part"
    assert shown[2] == {"m0", "m1", "m2"}, "back after an epoch; the others were too hard in the first"
    assert shown[3] == {"m0", "m1"} | rest and shown[4] == {"m0", "m1", "m2"}
    assert query(c, "SELECT prompt_id, decision, reason, until FROM decisions WHERE epoch = 0") == [
        ("m0", "dropped", "measured pass rate 1, above 0.75", 2),
        ("m2", "dropped", "measured pass rate 0, below 0.25", 2)]
    assert query(c, "SELECT prompt_id, reason FROM decisions WHERE epoch = 1 AND decision = 'returned'") == [
        ("m0", "away for 1 epochs"), ("m2", "away for 1 epochs")]
    assert query(c, "SELECT step, detail FROM events WHERE kind = 'resample'")[0] == (
        0, "epoch 1: 2 of 10 prompts are left out for their measured pass rate")


def test_what_is_measured_anew_is_nothing_to_a_run_that_has_begun(make):
    config = Resample(sampler="difficulty")
    c = make(config, pass_rates={"m0": 1.0})
    run(c, lambda prompt, epoch: 2, steps=4)
    resumed = make(config, pass_rates={"m1": 1.0})
    resumed.load_state_dict(c.state_dict())
    run(resumed, lambda prompt, epoch: 2)
    assert query(resumed, "SELECT prompt_id FROM decisions WHERE decision = 'dropped'") == [("m0",)]


def test_prompts_are_left_out_once_also_where_that_empties_the_first_stage(make):
    config = Resample(sampler="difficulty")
    stages = [Stage(name=n, domains=["math"], until="epochs", epochs=1) for n in ("one", "two")]
    c = make(config, pass_rates=dict.fromkeys(PROBLEMS, 1.0), stages=stages)
    assert c.next() is None
    assert query(c, "SELECT COUNT(*) FROM decisions") == [(10,)]
    assert [k for k, in query(c, "SELECT kind FROM events")] == ["resample", "emptied", "stage", "emptied", "stage"]


def test_every_prompt_of_an_epoch_gets_a_decision_with_its_reason(make):
    for name in NAMES:
        config = Resample(sampler=name)
        c = make(config, name, epochs=1)
        run(c, half)
        found = query(c, "SELECT prompt_id, decision, reason FROM decisions")
        assert sorted(p for p, *_ in found) == sorted(PROBLEMS) and all(reason for *_, reason in found)


@pytest.mark.parametrize(("now", "message"), [
    (Resample(), r"resample\.sampler = history: this run began with dynamic"),
    (Resample(sampler="dynamic", max_rounds=3), r"resample\.max_rounds = 3: this run began with 10"),
])
def test_the_sampler_of_a_begun_run_cannot_be_changed(make, now, message):
    state = make(DYNAMIC).state_dict()
    with pytest.raises(UserError, match=message):
        make(now).load_state_dict(state)
