"""The ledger: durable transactions, exact rollback, readable failures."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from statistics import fmean

import pytest

from srpo.control.ledger import START, Decision, Ledger, Outcome, RolloutRow, StepReward, Verdict, connect, step_rewards
from srpo.errors import UserError


def step_rows(step: int, *, epoch: int = 1, prompts=("a", "b"), correct=0.0, reward=0.5, samples: int = 2):
    return [RolloutRow(epoch, step, "s", p, k, "math", correct, reward, 7, False)
            for p in prompts for k in range(samples)]


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def dump(ledger: Ledger) -> str:
    return "\n".join(ledger.dump())


def test_tables_have_the_documented_columns(ledger):
    columns = {t: [c[1] for c in sqlite3.connect(ledger.path).execute(f"PRAGMA table_info({t})")] for t in START}
    assert columns == {
        "rollouts": ["epoch", "step", "stage", "prompt_id", "sample", "domain", "correct", "reward", "tokens",
                     "truncated"],
        "prompts": ["epoch", "step", "stage", "prompt_id", "domain", "samples", "correct", "mixed", "reward", "spread",
                    "tokens", "truncated", "trained"],
        "steps": ["step", "epoch", "stage", "rollouts", "reward"],
        "epochs": ["epoch", "stage", "prompts", "kept", "dropped"],
        "decisions": ["epoch", "prompt_id", "decision", "reason", "until"],
        "events": ["step", "kind", "detail"],
    }


def test_rollback_then_the_same_rows_give_the_same_ledger(ledger):
    ledger.append(step_rows(1))
    ledger.event(1, "note", "one")
    position = ledger.position()

    def rest():
        ledger.append(step_rows(2))
        ledger.close_epoch(1, "s", [Decision("a", "dropped", "2 of 2 correct"), Decision("b", "kept", "")])
        ledger.event(2, "note", "two")

    rest()
    first, rowids = dump(ledger), ledger.position()
    ledger.rollback(position)
    assert ledger.position() == position and "two" not in dump(ledger)
    rest()
    assert dump(ledger) == first and ledger.position() == rowids


def test_rollback_to_the_start_empties_it(ledger):
    ledger.append(step_rows(1))
    ledger.rollback(START)
    assert ledger.position() == START
    ledger.append(step_rows(1))


def test_rollback_beyond_the_end_names_both_counts(ledger):
    with pytest.raises(UserError, match="holds 0 rollouts, but the checkpoint was saved with 5"):
        ledger.rollback({**START, "rollouts": 5})


def test_a_step_cannot_be_recorded_twice(ledger):
    ledger.append(step_rows(3))
    with pytest.raises(ValueError, match="already holds step 3"):
        ledger.append(step_rows(3))


def test_a_failed_append_leaves_nothing_of_the_step(ledger):
    nan = [*step_rows(1), RolloutRow(1, 1, "s", "c", 0, "math", 0.0, float("nan"), 7, False)]
    with pytest.raises(sqlite3.IntegrityError):
        ledger.append(nan)
    assert ledger.position() == START
    ledger.append(step_rows(1))


def test_full_disk_is_one_readable_line_and_loses_no_earlier_step(ledger):
    ledger.append(step_rows(1))
    ledger._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(UserError, match=r"ledger\.sqlite: cannot read or write the ledger: database or disk is full"):
        ledger.append(step_rows(2, prompts=[f"prompt {i}" for i in range(5000)]))
    assert ledger.position()["rollouts"] == 4


def test_a_file_that_is_no_ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match="file is not a database"):
        Ledger(path)
    with pytest.raises(UserError, match="unable to open"):
        Ledger(tmp_path / "missing" / "ledger.sqlite")


def test_readers_look_while_the_run_writes(ledger):
    ledger.append(step_rows(1))
    with closing(connect(ledger.path)) as reader:
        for step in (2, 3):
            ledger.append(step_rows(step))
            assert reader.execute("SELECT MAX(step) FROM rollouts").fetchall() == [(step,)]


def test_a_reader_that_does_not_end_keeps_what_it_reads_and_the_run_goes_on(ledger, monkeypatch, caplog):
    """As `sqlite3 RUN/ledger.sqlite 'SELECT ...' | less`, left open."""
    monkeypatch.setattr("srpo.control.ledger.PATIENCE", 0.05)
    ledger = Ledger(ledger.path)
    for step in (1, 2):
        ledger.append(step_rows(step))
    with closing(connect(ledger.path)) as reader:
        rows = reader.execute("SELECT step FROM rollouts")
        assert rows.fetchone() == (1,)
        for step in (3, 4):
            ledger.append(step_rows(step))
        assert caplog.text.count("made the run wait") == 1
        assert rows.fetchall() == [(1,)] * 3 + [(2,)] * 4
    with closing(connect(ledger.path)) as reader:
        assert reader.execute("SELECT COUNT(*), MAX(step) FROM rollouts").fetchall() == [(16, 4)]
    assert {f.name for f in ledger.path.parent.iterdir()} == {"ledger.sqlite", "ledger.sqlite-journal"}
    ledger.close()


def test_no_file_is_shared_memory(ledger):
    """A write-ahead log's index is, which hosts that share a disk do not share. What a log holds is taken over."""
    ledger.append(step_rows(1))
    ledger._db.execute("PRAGMA journal_mode = WAL")  # as older versions left it
    ledger.append(step_rows(2))
    with closing(connect(ledger.path)) as reader:
        assert reader.execute("SELECT MAX(step) FROM steps").fetchone() == (2,)
    killed = ledger.path.parent / "killed"
    killed.mkdir()
    subprocess.run(["cp", ledger.path, f"{ledger.path}-wal", killed], check=True)
    with closing(Ledger(killed / "ledger.sqlite")) as again:
        assert again.position()["steps"] == 2
        again.append(step_rows(3))
        assert {f.name for f in killed.iterdir()} == {"ledger.sqlite", "ledger.sqlite-journal"}


def test_a_committed_step_survives_kill(tmp_path):
    path = tmp_path / "ledger.sqlite"
    code = (f"import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from test_ledger import *\n"
            f"ledger = Ledger({str(path)!r})\n"
            "for step in range(1, 6): ledger.append(step_rows(step))\n"
            "ledger._db.execute('BEGIN IMMEDIATE')\n"
            "ledger._db.execute(\"INSERT INTO events VALUES (9, 'half', 'done')\")\n"
            "os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == -signal.SIGKILL
    ledger = Ledger(path)
    assert ledger.position() == {**START, "rollouts": 20, "prompts": 10, "steps": 5}
    assert ledger.step_rewards("s") == [StepReward(0.5, 4, 1)] * 5


def test_mean_lengths_by_epoch_and_prompt(ledger):
    def row(epoch, prompt, sample, tokens):
        return RolloutRow(epoch, epoch, "s", prompt, sample, "math", 0.0, 0.0, tokens, False)

    ledger.append([row(1, "a", 0, 10), row(1, "a", 1, 21), row(1, "b", 0, 4)])
    ledger.append([row(2, "a", 0, 7)])
    assert list(ledger.mean_lengths(range(1, 3))) == [("a", 15.5), ("b", 4.0), ("a", 7.0)]
    assert list(ledger.mean_lengths(range(2, 3))) == [("a", 7.0)]
    assert list(ledger.mean_lengths(range(1, 1))) == []


def test_step_rewards_are_those_of_the_rows_and_tell_sets_of_prompts_apart(ledger):
    rewards = {1: [0.1, 0.2, 0.7], 2: [1 / 3, 1e-9, 5e15, -5e15], 3: [0.25], 4: [1.0]}
    for step, values in rewards.items():
        ledger.append([RolloutRow(step, step, "t" if step == 4 else "s", "a", k, "math", 0.0, reward, 7, False)
                       for k, reward in enumerate(values)])
        ledger.close_epoch(step, "s", [Decision("a", "dropped" if step == 2 else "kept", "")])
    expected = [StepReward(fmean(rewards[1]), 3, 1), StepReward(fmean(rewards[2]), 4, 1),
                StepReward(fmean(rewards[3]), 1, 3)]
    assert ledger.step_rewards("s") == expected
    with closing(connect(ledger.path)) as db:
        assert step_rewards(db, "s", 2) == expected[:2]
    assert [ledger.same_prompts_since(epoch) for epoch in (1, 2, 3, 4)] == [1, 1, 3, 3]


def test_prompts_that_an_update_did_without_are_those_of_its_step(ledger):
    ledger.append(step_rows(1, prompts="abc"))
    ledger.append(step_rows(2, prompts="abc"), unused={"a", "c"})
    with closing(connect(ledger.path)) as db:
        assert db.execute("SELECT step, prompt_id FROM prompts WHERE trained = 0").fetchall() == [(2, "a"), (2, "c")]


def test_outcomes_are_about_correctness_by_epoch_and_prompt(ledger):
    half = [RolloutRow(1, 1, "s", "half", k, "math", float(k), 5.0, 7, False) for k in range(2)]
    partial = [RolloutRow(1, 1, "s", "partial", k, "code", 0.9, 5.0, 7, False) for k in range(2)]
    ledger.append(half + partial + step_rows(1, prompts=["yes"], correct=1.0, reward=-1.0))
    ledger.append(step_rows(2, epoch=2, prompts=["half"], correct=1.0))
    assert judged(ledger, 1) == {Outcome(2, 1, True): "half", Outcome(2, 0, False): "partial",
                                 Outcome(2, 2, False): "yes"}
    assert judged(ledger, 2) == {Outcome(2, 2, False): "half"}
    assert judged(ledger, 3) == {}


def judged(ledger: Ledger, epoch: int) -> dict[Outcome, str]:
    """What a sampler is asked, and the prompt that gets its answer."""
    asked: list[Outcome] = []

    def judge(outcome: Outcome) -> Verdict:
        asked.append(outcome)
        return Verdict("kept", str(len(asked)))

    ledger.close_epoch(epoch, "s", [], judge)
    rows = connect(ledger.path).execute("SELECT reason, prompt_id FROM decisions WHERE epoch = ?", (epoch,)).fetchall()
    assert len(rows) == len(asked)
    return {asked[int(reason) - 1]: prompt for reason, prompt in rows}


def test_a_verdict_is_for_all_prompts_with_an_outcome_in_their_order(ledger):
    for step, correct in enumerate([1.0, 0.0, 1.0], start=1):
        ledger.append(step_rows(step, prompts=[f"{step} b", f"{step} a"], correct=correct))
    asked = []

    def judge(outcome: Outcome) -> Verdict:
        asked.append(outcome)
        if len(asked) == 2 and not fine:
            raise RuntimeError("in the middle")
        if outcome.correct:
            return Verdict("dropped", "right", 5)
        return Verdict("kept", "wrong")

    fine = False
    with pytest.raises(RuntimeError):
        ledger.close_epoch(1, "s", [], judge)
    assert ledger.position()["decisions"] == 0
    fine, asked = True, []
    counts = ledger.close_epoch(1, "s", [Decision("away", "returned", "")], judge)
    assert counts == {"kept": 2, "dropped": 4, "returned": 1} and len(asked) == 2
    assert connect(ledger.path).execute("SELECT prompt_id, reason, until FROM decisions").fetchall() == [
        ("1 b", "right", 5), ("1 a", "right", 5), ("2 b", "wrong", None), ("2 a", "wrong", None), ("3 b", "right", 5),
        ("3 a", "right", 5), ("away", "", None)]
    assert list(ledger.dropped(after=3)) == [("3 b", 5), ("3 a", 5)]


def test_a_row_a_prompt_and_epoch(ledger):
    def row(prompt, sample, correct, reward, tokens, truncated):
        return RolloutRow(1, 1, "s", prompt, sample, "math", correct, reward, tokens, truncated)

    ledger.append([row("b", 0, 1.0, 1.5, 10, False), row("b", 1, 0.5, -0.5, 21, True),
                   row("a", 0, 0.0, 0.25, 4, True), row("a", 1, 0.0, 0.25, 4, True)], unused=["a"])
    assert connect(ledger.path).execute("SELECT * FROM prompts").fetchall() == [
        (1, 1, "s", "b", "math", 2, 1, 1, 0.5, 2.0, 31, 1, 1), (1, 1, "s", "a", "math", 2, 0, 0, 0.25, 0.0, 8, 2, 0)]


def test_an_epochs_decisions_and_counts_are_one(ledger):
    decisions = [Decision("a", "dropped", "2 of 2 correct", 4), Decision("b", "kept", "1 of 2 correct"),
                 Decision("c", "returned", "away for 2 epochs"), Decision("d", "dropped", "2 of 2 correct")]
    assert ledger.close_epoch(1, "s", iter(decisions)) == {"kept": 1, "dropped": 2, "returned": 1}
    assert list(ledger.dropped()) == [("a", 4), ("d", None)]
    assert connect(ledger.path).execute("SELECT * FROM epochs").fetchall() == [(1, "s", 3, 1, 2)]

    def fail():
        yield decisions[0]
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        ledger.close_epoch(2, "s", fail())
    assert ledger.position()["decisions"] == 4


def test_a_reader_of_a_folder_that_has_no_ledger_or_another_version(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*ledger\.sqlite; give a run folder"):
        connect(tmp_path)
    sqlite3.connect(tmp_path / "ledger.sqlite").execute("CREATE TABLE rollouts (epoch)")
    for open_it in (connect, Ledger):
        with pytest.raises(UserError, match="is no ledger of this version of srpo"):
            open_it(tmp_path / "ledger.sqlite")


READ = """
import os, sys
from srpo.control.ledger import connect
from srpo.errors import UserError
if os.geteuid() == 0:
    os.setuid(65534)  # permissions do not bind root
try:
    print(connect(sys.argv[1]).execute("SELECT COUNT(*) FROM steps").fetchone()[0])
except UserError as e:
    print(e)
"""
KILLED = """
import os, signal, sys
from srpo.control.ledger import Ledger
db = Ledger(sys.argv[1])._db
db.execute("PRAGMA cache_size = 1")  # write before the commit
db.execute("BEGIN")
db.execute("UPDATE steps SET reward = 9")
db.executemany("INSERT INTO events VALUES (1, 'half', ?)", [("x" * 1000,)] * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_reader_who_may_not_write_the_folder(killed):
    """A ledger whose run was killed in a transaction is not whole, and a reader must not take it for that."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own is for its owner only
        folder = Path(name)
        with closing(Ledger(folder / "ledger.sqlite")) as ledger:
            ledger.append(step_rows(1))
        if killed:
            subprocess.run([sys.executable, "-c", KILLED, str(ledger.path)])
            assert (folder / "ledger.sqlite-journal").stat().st_size
        folder.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", READ, str(folder)], capture_output=True, text=True)
        said = done.stdout.strip()
        assert "a run was killed in the middle of a transaction" in said if killed else said == "1", done.stderr
        with closing(Ledger(ledger.path)) as ledger:
            assert ledger.step_rewards("s") == [StepReward(0.5, 4, 1)] and ledger.position()["events"] == 0
