"""The curriculum, driven by a policy that is a function of (prompt, epoch): what a run does must not depend on where
it was killed and resumed."""

import json
import sqlite3
import subprocess
import sys

import pytest

from srpo.config import Resample, Stage
from srpo.control import Curriculum, Ledger, RolloutRow
from srpo.errors import UserError

MATH = {f"m{i}": "math" for i in range(7)}
CODE = {f"c{i}": "code" for i in range(4)}


def stage(name="one", domains=("math",), **fields) -> Stage:
    return Stage(name=name, domains=list(domains), **({"until": "epochs", "epochs": 2} | fields))


def rows(plan, problems, correct, reward=None):
    """Two samples a prompt; correct(prompt, epoch) -> share of them that is."""
    out = []
    for prompt in plan.prompt_ids:
        for k in range(2):
            right = float((k + 1) / 2 <= correct(prompt, plan.epoch))
            out.append(RolloutRow(plan.epoch, plan.step, plan.stage, prompt, k, problems[prompt], correct=right,
                                  reward=reward(plan.step) if reward else right,
                                  tokens=10 * plan.epoch + int(prompt[1:]) + k, truncated=False))
    return out


def run(curriculum, problems, correct, reward=None, steps=1000):
    plans = []
    while len(plans) < steps and (plan := curriculum.next()):
        plans.append(plan)
        curriculum.record(plan, rows(plan, problems, correct, reward))
    return plans


@pytest.fixture
def make(tmp_path):
    def make(problems, stages, resample=None, prompts=3, seed=1, name="ledger.sqlite", difficulty=None, oversample=1.0,
             texts=""):
        ledger = Ledger(tmp_path / name)
        ledger._db.execute("PRAGMA synchronous = OFF")      # durability has its own test; thousands of syncs are slow
        return Curriculum(problems, stages, resample or Resample(), prompts, seed, ledger, difficulty, oversample,
                          texts=texts)
    return make


def table(curriculum, name):
    return list(sqlite3.connect(curriculum._ledger.path).execute(f"SELECT * FROM {name} ORDER BY rowid"))


def never(prompt, epoch):
    return 0.0


def test_an_epoch_is_one_pass_and_its_last_step_is_short(make):
    plans = run(make(MATH, [stage()]), MATH, never)
    assert [len(p.prompt_ids) for p in plans] == [3, 3, 1, 3, 3, 1]
    assert [(p.step, p.epoch) for p in plans] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    first, second = ([i for p in plans if p.epoch == e for i in p.prompt_ids] for e in (1, 2))
    assert sorted(first) == sorted(second) == sorted(MATH)
    assert first != second


def test_a_prompt_s_length_is_that_of_its_latest_epoch(make):
    """Mastered in the first epoch and back in the third, where its length is still the first's."""
    plans = run(make(MATH, [stage(epochs=3)], Resample(epochs=1)), MATH, lambda p, e: float(p == "m0"))
    lengths = {e: {i: length for p in plans if p.epoch == e for i, length in zip(p.prompt_ids, p.lengths, strict=True)}
               for e in (1, 2, 3)}
    assert set(lengths[1].values()) == {None}
    assert lengths[2] == {p: 10 + int(p[1:]) + 0.5 for p in MATH if p != "m0"}
    assert lengths[3] == {p: (10 if p == "m0" else 20) + int(p[1:]) + 0.5 for p in MATH}


def test_the_order_depends_on_seed_and_epoch_alone(make):
    long = run(make(MATH, [stage()], prompts=7, name="a"), MATH, never)
    short = run(make(MATH, [stage()], prompts=2, name="b"), MATH, never)
    assert long[1].prompt_ids == [i for p in short if p.epoch == 2 for i in p.prompt_ids]
    assert long[0].prompt_ids != run(make(MATH, [stage()], prompts=7, seed=2, name="c"), MATH, never)[0].prompt_ids


def oversampled(curriculum, problems, complete, steps=1000):
    """A run in which `complete(plan)` says which prompts are finished first."""
    plans = []
    while len(plans) < steps and (plan := curriculum.next()):
        plans.append(plan)
        done = sorted(plan.prompt_ids, key=complete)[:plan.finish]
        curriculum.record(plan, [r for r in rows(plan, problems, never) if r.prompt_id in done])
    return plans


def test_a_step_begins_more_prompts_than_it_trains_on(make):
    """The hard ones stay until nothing else is left; in an epoch everyone's turn comes once, and its end waits."""
    c = make(MATH, [stage()], oversample=1.5)
    plans = oversampled(c, MATH, complete=lambda p: p in ("m0", "m1"))
    first = [p for p in plans if p.epoch == 1]
    assert [(len(p.prompt_ids), p.finish) for p in first] == [(5, 3), (4, 3), (1, 1)]
    assert [p.begun for p in first][0] == 0 and all(
        set(b.prompt_ids[:b.begun]) <= set(a.prompt_ids) for a, b in zip(first, first[1:], strict=False))
    trained = [r[0] for r in c._ledger._query("SELECT prompt_id FROM rollouts WHERE epoch = 1 AND sample = 0")]
    assert sorted(trained) == sorted(MATH) and {trained[-1]} <= {"m0", "m1"}
    assert table(c, "epochs") == [(1, "one", 7, 7, 0), (2, "one", 7, 7, 0)]


def test_a_stage_that_ends_drops_what_it_has_begun(make):
    """It was not seen: it is neither dropped as mastered nor counted, and comes again as any other prompt."""
    problems = MATH | CODE
    c = make(problems, [stage(until="steps", steps=1), stage("two", ("math", "code"), epochs=1)], oversample=2.0)
    plans = oversampled(c, problems, complete=lambda p: p)
    assert len(plans[0].prompt_ids) == 6 and plans[1].begun == 0
    assert table(c, "epochs")[0] == (1, "one", 3, 3, 0)
    trained = [r[0] for r in c._ledger._query("SELECT prompt_id FROM rollouts WHERE epoch = 2 AND sample = 0")]
    assert sorted(trained) == sorted(problems)


def test_an_oversampled_run_resumes_anywhere(make):
    problems = MATH | CODE
    stages = [stage(until="steps", steps=2), stage("two", ("math", "code"), epochs=2)]
    whole = make(problems, stages, name="whole", oversample=1.5)
    plans = oversampled(whole, problems, complete=lambda p: p)
    for saved_after in range(len(plans)):
        killed = make(problems, stages, name=f"{saved_after}", oversample=1.5)
        oversampled(killed, problems, complete=lambda p: p, steps=saved_after)
        state = json.loads(json.dumps(killed.state_dict()))
        oversampled(killed, problems, complete=lambda p: p, steps=2)
        resumed = make(problems, stages, name=f"{saved_after}", oversample=1.5)
        resumed.load_state_dict(state)
        assert oversampled(resumed, problems, complete=lambda p: p) == plans[saved_after:]
        assert list(resumed._ledger.dump()) == list(whole._ledger.dump())
        killed._ledger.close()
        resumed._ledger.close()


def test_rows_of_too_many_or_too_few_groups_are_refused(make):
    c = make(MATH, [stage()], oversample=1.5)
    plan = c.next()
    every = rows(plan, MATH, never)
    for count in (2, 4):
        with pytest.raises(ValueError, match="not those of its plan"):
            c.record(plan, every[:2 * count])
    c.record(plan, every[:2 * plan.finish])


def test_mastered_prompts_leave_for_good_and_the_reward_does_not_matter(make):
    c = make(MATH, [stage(epochs=3)])
    plans = run(c, MATH, lambda p, e: {"m0": 1.0, "m1": 0.5}.get(p, 0.0), reward=lambda step: 1.0)
    seen = {e: {i for p in plans if p.epoch == e for i in p.prompt_ids} for e in (1, 2, 3)}
    assert seen == {1: set(MATH), 2: set(MATH) - {"m0"}, 3: set(MATH) - {"m0"}}
    assert table(c, "epochs") == [(1, "one", 7, 6, 1), (2, "one", 6, 6, 0), (3, "one", 6, 6, 0)]


def test_drop_at_is_a_pass_rate(make):
    plans = run(make(MATH, [stage()], Resample(drop_at=0.5)), MATH, lambda p, e: {"m0": 1.0, "m1": 0.5}.get(p, 0.0))
    assert {i for p in plans if p.epoch == 2 for i in p.prompt_ids} == set(MATH) - {"m0", "m1"}


def test_prompts_return_after_their_epochs_away(make):
    c = make(MATH, [stage(epochs=6)], Resample(epochs=2))
    plans = run(c, MATH, lambda p, e: float(p == "m0"))
    assert [e for e in range(1, 7) if any("m0" in p.prompt_ids for p in plans if p.epoch == e)] == [1, 4]
    assert "0 dropped, 1 return" in table(c, "events")[2][2]


def test_without_resampling_epochs_are_plain(make):
    c = make(MATH, [stage()], Resample(sampler="plain"))
    assert len(run(c, MATH, lambda p, e: 1.0)) == 6
    assert table(c, "epochs") == [(1, "one", 7, 7, 0), (2, "one", 7, 7, 0)]


def test_a_stage_change_in_the_middle_of_an_epoch_closes_it(make):
    problems = MATH | CODE
    c = make(problems, [stage(until="steps", steps=2), stage("two", ("math", "code"), epochs=1)])
    plans = run(c, problems, lambda p, e: float(p != "m3"))
    first = {i for p in plans[:2] for i in p.prompt_ids}
    assert len(first) == 6 and [p.stage for p in plans[:3]] == ["one", "one", "two"]
    second = {i for p in plans[2:] for i in p.prompt_ids}
    assert second == set(problems) - (first - {"m3"}), "only what was seen can have been dropped"
    dropped = len(first - {"m3"})
    assert table(c, "epochs")[0] == (1, "one", 6, 6 - dropped, dropped)
    assert ("stage", "one -> two: 2 steps") in [e[1:] for e in table(c, "events")]


def test_an_epoch_that_ends_with_its_stage_is_closed_once(make):
    c = make(MATH, [stage(until="steps", steps=3), stage("two")])
    run(c, MATH, never, steps=4)
    assert table(c, "epochs") == [(1, "one", 7, 7, 0)]


def test_plateau_counts_the_stage_s_own_steps(make):
    c = make(MATH, [stage(until="plateau", window=5, cooldown=5), stage("two", until="plateau", window=6, cooldown=6)])
    plans = run(c, MATH, never, reward=lambda step: min(step, 6) / 10)
    # Flat from step 6, which the fifth step later is the first of a window; the next stage needs six of its own.
    assert [p.stage for p in plans] == ["one"] * 10 + ["two"] * 6


def test_an_emptied_set_ends_the_stage_with_a_readable_event(make):
    problems = MATH | CODE
    c = make(problems, [stage(epochs=5), stage("two", ("code",), epochs=5), stage("three", ("math", "code"))])
    plans = run(c, problems, lambda p, e: 1.0)
    assert [p.stage for p in plans] == ["one"] * 3 + ["two"] * 2
    assert c.next() is None
    assert [e for e in table(c, "events") if e[1] == "emptied"] == [
        (3, "emptied", "stage one: no math prompt is left after resampling"),
        (5, "emptied", "stage two: no code prompt is left after resampling"),
        (5, "emptied", "stage three: no math or code prompt is left after resampling")]
    assert table(c, "events")[-1][2] == "three -> end of the run: no math or code prompt is left after resampling"


def test_next_repeats_until_recorded(make):
    c = make(MATH, [stage()])
    assert c.next() == c.next()
    assert len(run(c, MATH, never)) == 6


def test_rows_of_another_plan_are_refused(make):
    c = make(MATH, [stage()])
    plan = c.next()
    good = rows(plan, MATH, never)
    with pytest.raises(ValueError, match="not those of its plan"):
        c.record(plan, good[2:])
    with pytest.raises(ValueError, match="not those of its plan"):
        c.record(plan, [RolloutRow(1, 2, "one", r.prompt_id, r.sample, "math", 0.0, 0.0, 1, False) for r in good])
    c.record(plan, good)


# -- kill and resume ------------------------------------------------------------------------------------------------

STAGES = [stage(until="plateau", window=7, min_gain=0.05, cooldown=1, max_steps=10),
          stage("two", ("math", "code"), until="epochs", epochs=3),
          stage("three", ("code",), until="steps", steps=3)]


def policy(prompt, epoch):
    """Some prompts are mastered in their first epoch, some later, some never, and some forget."""
    n = int(prompt[1:])
    return [1.0 if epoch == 1 + n else 0.5, float(epoch > n), 0.0][n % 3]


def growing(step):
    return min(step, 3) / 7


def whole_run(make, name, resample):
    problems = MATH | CODE
    curriculum = make(problems, STAGES, resample, name=name)
    return curriculum, run(curriculum, problems, policy, growing)


@pytest.mark.parametrize("resample", [Resample(), Resample(epochs=1), Resample(drop_at=0.5, epochs=2)])
def test_resumed_anywhere_the_ledger_is_that_of_an_uninterrupted_run(make, resample):
    problems = MATH | CODE
    reference, plans = whole_run(make, "reference", resample)
    expected = list(reference._ledger.dump())
    assert len({p.stage for p in plans}) == 3 and len({p.epoch for p in plans}) >= 4
    for saved_after in range(len(plans) + 1):
        for lost in (0, 3):
            name = f"{saved_after}-{lost}"
            killed = make(problems, STAGES, resample, name=name)
            done = run(killed, problems, policy, growing, steps=saved_after)
            state = json.loads(json.dumps(killed.state_dict()))
            run(killed, problems, policy, growing, steps=lost)
            killed.next()                                   # an epoch may have been closed and a stage changed, unsaved
            resumed = make(problems, STAGES, resample, name=name)
            resumed.load_state_dict(state)
            assert done + run(resumed, problems, policy, growing) == plans
            assert list(resumed._ledger.dump()) == expected
            killed._ledger.close()
            resumed._ledger.close()


def test_a_state_saved_between_next_and_record_resumes_too(make):
    problems = MATH | CODE
    reference, plans = whole_run(make, "reference", Resample())
    for saved_after in range(len(plans)):
        killed = make(problems, STAGES, name=f"{saved_after}")
        run(killed, problems, policy, growing, steps=saved_after)
        killed.next()
        state = killed.state_dict()
        resumed = make(problems, STAGES, name=f"{saved_after}")
        resumed.load_state_dict(state)
        assert run(resumed, problems, policy, growing) == plans[saved_after:]
        assert list(resumed._ledger.dump()) == list(reference._ledger.dump())
        resumed._ledger.close()


def test_a_run_killed_before_its_first_checkpoint_begins_again(make):
    problems = MATH | CODE
    reference, plans = whole_run(make, "reference", Resample())
    run(make(problems, STAGES, name="killed"), problems, policy, growing, steps=5)
    again = make(problems, STAGES, name="killed")
    again.load_state_dict(None)
    assert run(again, problems, policy, growing) == plans
    assert list(again._ledger.dump()) == list(reference._ledger.dump())


def test_a_finished_run_goes_on_when_its_last_stage_is_made_longer(make):
    first = make(MATH, [stage(epochs=1)])
    done = run(first, MATH, never)
    state, ledger = first.state_dict(), list(first._ledger.dump())
    same = make(MATH, [stage(epochs=1)])
    same.load_state_dict(state)
    assert same.next() is None and list(same._ledger.dump()) == ledger, "resuming a finished run changes nothing"
    longer = make(MATH, [stage(epochs=2)])
    longer.load_state_dict(state)
    more = run(longer, MATH, never)
    assert [p.step for p in more] == [len(done) + i + 1 for i in range(len(done))] and {p.epoch for p in more} == {2}


def test_a_finished_run_whose_prompts_are_all_mastered_stays_finished(make):
    first = make(MATH, [stage(epochs=5)])
    run(first, MATH, lambda prompt, epoch: 1.0)
    state, ledger = first.state_dict(), list(first._ledger.dump())
    again = make(MATH, [stage(epochs=9)])
    again.load_state_dict(state)
    assert again.next() is None and list(again._ledger.dump()) == ledger


def test_the_state_is_small(make):
    many = {f"m{i}": "math" for i in range(2000)}
    c = make(many, [stage(epochs=3)], prompts=500)
    run(c, many, lambda p, e: 1.0 if int(p[1:]) % 2 else 0.0, steps=6)
    assert len(json.dumps(c.state_dict())) < 400


def test_other_data_or_seed_are_refused(make):
    state = make(MATH, [stage()]).state_dict()
    for other in (make(MATH | CODE, [stage()]), make(MATH, [stage()], seed=2)):
        with pytest.raises(UserError, match="data.train or seed .*: not what this run began with"):
            other.load_state_dict(state)


def test_other_questions_under_the_same_ids_are_refused(make):
    """The ledger would tell of them what the policy knows of those before."""
    state = make(MATH, [stage()], texts="a").state_dict()
    make(MATH, [stage()], texts="a").load_state_dict(state)
    with pytest.raises(UserError, match="data.train: asks other questions under the ids of those that this run began"):
        make(MATH, [stage()], texts="b").load_state_dict(state)
    del state["texts"]  # as in older checkpoints
    make(MATH, [stage()], texts="b").load_state_dict(state)


@pytest.mark.parametrize(("stages", "resample", "message"), [
    (STAGES, Resample(sampler="plain"), r"resample\.sampler = plain: this run began with history; restore it"),
    (STAGES, Resample(drop_at=0.5), r"resample\.drop_at = 0\.5: this run began with None; restore it"),
    (STAGES, Resample(epochs=2), r"resample\.epochs = 2: this run began with None; restore it"),
    ([stage("first"), *STAGES[1:]], None, r"stages\.0\.name = 'first': this run has begun 'one' there"),
    ([STAGES[0], stage("between"), *STAGES[1:]], None, r"stages\.1\.name = 'between': this run has begun 'two' there"),
    ([STAGES[1], STAGES[0], STAGES[2]], None, r"stages\.0\.name = 'two': this run has begun 'one' there"),
    (STAGES[:1], None, r"stages: stage 'two', which this run has begun, is missing"),
    ([STAGES[0], stage("two", ("code",))], None, r"stages\.1: takes code problems; this run began stage 'two' with "),
])
def test_what_has_begun_cannot_be_changed(make, stages, resample, message):
    problems = MATH | CODE
    first = make(problems, STAGES)
    assert run(first, problems, policy, growing, steps=10)[-1].stage == "two"
    ledger = list(first._ledger.dump())
    with pytest.raises(UserError, match=message):
        make(problems, stages, resample).load_state_dict(first.state_dict())
    assert list(first._ledger.dump()) == ledger, "a refusal rolls nothing back"


def test_stages_that_have_not_begun_can_be_added_and_changed(make):
    problems = MATH | CODE
    first = make(problems, STAGES)
    run(first, problems, policy, growing, steps=10)
    changed = make(problems, [*STAGES[:2], stage("new", ("math",), epochs=1), stage("three", ("math",), epochs=1)])
    changed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert list(dict.fromkeys(p.stage for p in run(changed, problems, policy, growing))) == ["two", "new", "three"]


def test_a_finished_run_goes_on_with_its_last_stage_made_longer_and_then_a_new_one(make):
    problems = MATH | CODE
    first = make(problems, [stage(epochs=1)])
    run(first, problems, never)
    longer = make(problems, [stage(epochs=2), stage("two", ("code",), epochs=1)])
    longer.load_state_dict(first.state_dict())
    assert [p.stage for p in run(longer, problems, never)] == ["one"] * 3 + ["two"] * 2


# -- user errors ----------------------------------------------------------------------------------------------------


def test_a_stage_without_problems_is_named(make):
    with pytest.raises(UserError, match=r"stages\.1\.domains = \['code'\] \(stage 'two'\): data.train has no such"):
        make(MATH, [stage(), stage("two", ("code",))])


def test_a_stage_takes_the_difficulty_that_it_asks_for(make):
    problems = MATH | CODE
    hard, medium, *_ = MATH
    known = {hard: "hard", medium: "medium", next(iter(CODE)): "hard"}
    plans = run(make(problems, [stage("hard", difficulty=["hard"], epochs=1),
                                stage("harder", difficulty=["medium", "hard"], epochs=1),
                                stage("all", ("math", "code"), epochs=1)], difficulty=known), problems, never)
    seen = {name: {p for plan in plans if plan.stage == name for p in plan.prompt_ids} for name in
            ("hard", "harder", "all")}
    assert seen == {"hard": {hard}, "harder": {hard, medium}, "all": set(problems)}


def test_a_difficulty_that_no_problem_has_is_named(make):
    with pytest.raises(UserError, match=r"stages\.0\.difficulty = \['easy'\] \(stage 'one'\): data\.train has no"):
        make(MATH, [stage(difficulty=["easy"])], difficulty={next(iter(MATH)): "hard"})


def test_other_difficulties_are_other_data(make):
    known = {prompt: "hard" for prompt in MATH}
    first = make(MATH, [stage(difficulty=["hard"])], difficulty=known)
    run(first, MATH, never, steps=1)
    with pytest.raises(UserError, match=r"stages\.0: takes math, medium problems; this run began stage 'one' with "):
        make(MATH, [stage(difficulty=["medium"])], difficulty=known | {next(iter(MATH)): "medium"}
             ).load_state_dict(first.state_dict() | {"data": make(
                 MATH, [stage()], difficulty=known | {next(iter(MATH)): "medium"}).state_dict()["data"]})
    with pytest.raises(UserError, match="data.train or seed .*: not what this run began with"):
        make(MATH, [stage(difficulty=["hard"])], difficulty=known | {next(iter(MATH)): "medium"}
             ).load_state_dict(first.state_dict())


def test_control_imports_no_torch():
    code = "import sys, srpo.control; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_is_said_once_when_fewer_prompts_are_left_than_a_step_has(make):
    """Of seven prompts one is mastered in each epoch; a step has four."""
    c = make(MATH, [stage(epochs=6)], prompts=4)
    run(c, MATH, lambda p, e: float(p == f"m{e}"))
    events = [(kind, detail) for _, kind, detail in table(c, "events") if kind in ("resample", "few")]
    assert [kind for kind, _ in events].index("few") == 4, "after the fourth epoch, which had four"
    assert [kind for kind, _ in events].count("few") == 1
    assert events[4][1].startswith("3 prompts are left, fewer than a step has (4): ")


def test_prompts_that_an_unfinished_epoch_did_not_show_are_left(make):
    """Of seven prompts a step shows four, and one of them leaves as the stage ends."""
    c = make(MATH, [stage(until="steps", steps=1, epochs=None)], prompts=4)
    first = c.next().prompt_ids[0]
    run(c, MATH, lambda p, e: float(p == first))
    assert [kind for _, kind, _ in table(c, "events")] == ["resample", "stage"]
