"""The ledger: one SQLite row a rollout and one a prompt and epoch, from which resampling, stages and reports are
derived.

- rollouts: `RolloutRow`.
- prompts: a prompt's rollouts of one epoch together. `samples` of them, of which `correct` fully so; `mixed`: their
  correctness differs; mean `reward`, and `spread`, the largest less the smallest (at 0 none has an advantage); `tokens`
  of all; how many were `truncated`; `trained`: the step's update used them.
- steps: how many rollouts a step has, and their mean `reward`.
- epochs: a closed epoch's prompts, how many of them stay and how many leave.
- decisions: after an epoch, every prompt that it saw or that comes back: `kept`, `dropped` or `returned`, and why. What
  is dropped takes part again in epoch `until`, or never. Those of epoch 0 were taken before the run saw any prompt.
- events: what the run decided, in words.

A step's rows are committed, and on the disk, before the optimizer sees the step. The journal is a rollback journal: the
run folder may be on a file system that hosts share, and a write-ahead log needs memory that only processes of one host
share. A reader's lock keeps a transaction waiting, but not for longer than PATIENCE. A checkpoint stores `position()`;
resuming from it deletes what came later, and since SQLite numbers a new row one above the largest, rows written
again after a rollback are the same rows.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from srpo.control.views import SQL
from srpo.errors import Fault, UserError
from srpo.files import replacing

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that a transaction waits for readers, and a reader for a transaction."""

VERSION = 2
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS rollouts (
    epoch INTEGER NOT NULL, step INTEGER NOT NULL, stage TEXT NOT NULL, prompt_id TEXT NOT NULL,
    sample INTEGER NOT NULL, domain TEXT NOT NULL, correct REAL NOT NULL, reward REAL NOT NULL,
    tokens INTEGER NOT NULL, truncated INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (
    epoch INTEGER NOT NULL, step INTEGER NOT NULL, stage TEXT NOT NULL, prompt_id TEXT NOT NULL, domain TEXT NOT NULL,
    samples INTEGER NOT NULL, correct INTEGER NOT NULL, mixed INTEGER NOT NULL, reward REAL NOT NULL,
    spread REAL NOT NULL, tokens INTEGER NOT NULL, truncated INTEGER NOT NULL, trained INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS prompts_epoch ON prompts (epoch);
CREATE TABLE IF NOT EXISTS steps (
    step INTEGER NOT NULL, epoch INTEGER NOT NULL, stage TEXT NOT NULL, rollouts INTEGER NOT NULL,
    reward REAL NOT NULL);
CREATE TABLE IF NOT EXISTS epochs (
    epoch INTEGER NOT NULL, stage TEXT NOT NULL, prompts INTEGER NOT NULL, kept INTEGER NOT NULL,
    dropped INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (
    epoch INTEGER NOT NULL, prompt_id TEXT NOT NULL, decision TEXT NOT NULL, reason TEXT NOT NULL, until INTEGER);
CREATE INDEX IF NOT EXISTS decisions_returned ON decisions (epoch) WHERE decision = 'returned';
CREATE TABLE IF NOT EXISTS events (step INTEGER NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL);
{SQL}
PRAGMA user_version = {VERSION};
"""
_TABLES = ("rollouts", "prompts", "steps", "epochs", "decisions", "events")
_JUDGED = """
INSERT INTO decisions SELECT epoch, prompt_id, decision, reason, until
FROM prompts CROSS JOIN verdicts USING (samples, correct, mixed) WHERE epoch = ? ORDER BY prompts.rowid
"""
_GROUPS = """
INSERT INTO prompts SELECT epoch, step, stage, prompt_id, domain, COUNT(*), SUM(correct >= 1.0),
    MIN(correct) < MAX(correct), AVG(reward), MAX(reward) - MIN(reward), SUM(tokens), SUM(truncated), 1
FROM rollouts WHERE rowid > ? GROUP BY prompt_id ORDER BY MIN(rowid)
"""

START = dict.fromkeys(_TABLES, 0)
"""Position of an empty ledger."""


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One sampled response. `stage` is the stage's name, `correct` the accuracy part of the reward in [0, 1],
    `tokens` the response's length; `epoch` and `step` count from 1 over the whole run."""

    epoch: int
    step: int
    stage: str
    prompt_id: str
    sample: int
    domain: str
    correct: float
    reward: float
    tokens: int
    truncated: bool


class Outcome(NamedTuple):
    """What an epoch showed of a prompt: how many of its rollouts were fully correct, and whether they differed."""

    samples: int
    correct: int
    mixed: bool


class Verdict(NamedTuple):
    """What an epoch's end means for a prompt. `until`: the epoch in which a dropped one takes part again, if any."""

    decision: Literal["kept", "dropped", "returned"]
    reason: str
    until: int | None = None


class Decision(NamedTuple):
    """A verdict about one prompt."""

    prompt_id: str
    decision: Literal["kept", "dropped", "returned"]
    reason: str
    until: int | None = None


@dataclass(frozen=True, slots=True)
class StepReward:
    """Mean reward of the rollouts of one step. `since`: the first epoch with the prompts that the step's epoch has;
    resampling neither took any nor gave one back in between."""

    reward: float
    rollouts: int
    since: int


_values = attrgetter(*(f.name for f in fields(RolloutRow)))


def connect(path: str | Path) -> sqlite3.Connection:
    """Open a run's ledger for reading, also while the run writes it; `path` is the file or the run's folder.

    Neither the file nor its folder need be writable. Raises UserError when there is none, or it cannot be read.
    """
    file = Path(path) / "ledger.sqlite" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        missing = "no such file or folder" if file == Path(path) else f"there is no {file}"
        raise UserError(f"{path}: {missing}; give a run folder, or its ledger.sqlite")
    with _errors(file):
        # Read-only: where locks do not reach from host to host, a reader could otherwise take the journal of a running
        # transaction for what a killed run left, and undo it.
        db = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=PATIENCE)
        try:
            _check_version(db, file)
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            raise UserError(f"{file}: cannot be read without being written: a run was killed in the middle of a "
                            "transaction, or an older version of srpo wrote the file; start the run again, or copy it, "
                            f"with all {file.name}-* beside it, and run `sqlite3 COPY .tables` once") from None
    return db


class Ledger:
    """Opens or creates the file. Any method raises UserError when the file cannot be read or written (full disk,
    locked by another run, not a ledger)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        with _errors(self.path):
            db = sqlite3.connect(self.path, isolation_level=None, timeout=PATIENCE)  # transactions are explicit
            # A commit empties the journal and syncs that too: a committed step survives a power cut.
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA synchronous = FULL")
            if db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                _check_version(db, self.path)
            else:
                db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            return db

    def append(self, rows: Sequence[RolloutRow], unused: Collection[str] = ()) -> None:
        """Commit the rows of one step in one durable transaction; its update does without the prompts `unused`. Raises
        ValueError when the step is not a new one."""
        last = self._query("SELECT step FROM steps ORDER BY rowid DESC LIMIT 1").fetchone()
        if rows and last and rows[0].step <= last[0]:
            raise ValueError(f"{self.path}: already holds step {last[0]}, cannot append step {rows[0].step}")
        before = self.position()
        with self._transaction():
            self._db.executemany("INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_values, rows))
            self._db.execute(_GROUPS, (before["rollouts"],))
            self._db.execute("UPDATE prompts SET trained = 0 WHERE rowid > ? AND prompt_id IN "
                             "(SELECT value FROM json_each(?))", (before["prompts"], json.dumps(list(unused))))
            if rows:
                self._db.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?)", (
                    rows[0].step, rows[0].epoch, rows[0].stage, len(rows), fmean(r.reward for r in rows)))

    def close_epoch(self, epoch: int, stage: str, decisions: Iterable[Decision],
                    judge: Callable[[Outcome], Verdict] | None = None) -> dict[str, int]:
        """Record an epoch's end; returns how many prompts were kept, dropped and returned. `judge` decides about the
        prompts that the epoch saw: it is asked once for all that have the same outcome."""
        before = self.position()["decisions"]
        with self._transaction():
            if judge:
                self._judge(epoch, judge)
            self._decide(epoch, decisions)
            counts = {"kept": 0, "dropped": 0, "returned": 0} | dict(self._db.execute(
                "SELECT decision, COUNT(*) FROM decisions WHERE rowid > ? GROUP BY decision", (before,)))
            self._db.execute("INSERT INTO epochs VALUES (?, ?, ?, ?, ?)",
                             (epoch, stage, counts["kept"] + counts["dropped"], counts["kept"], counts["dropped"]))
        return counts

    def decide(self, epoch: int, decisions: Iterable[Decision]) -> int:
        """Record decisions apart from an epoch's end; returns how many."""
        with self._transaction():
            return self._decide(epoch, decisions)

    def event(self, step: int, kind: str, detail: str) -> None:
        """Record a decision, readably."""
        with self._transaction():
            self._db.execute("INSERT INTO events VALUES (?, ?, ?)", (step, kind, detail))

    def position(self) -> dict[str, int]:
        """The last row of each table; JSON-able."""
        query = "SELECT COALESCE(MAX(rowid), 0) FROM "
        return {table: self._query(query + table).fetchone()[0] for table in _TABLES}

    def rollback(self, position: dict[str, int]) -> None:
        """Delete every row after `position`. Raises UserError when rows before it are missing."""
        for table, rows in self.position().items():
            if rows < position[table]:
                raise UserError(f"{self.path}: holds {rows} {table}, but the checkpoint was saved with "
                                f"{position[table]}; restore the ledger that belongs to it, or start a new run")
        with self._transaction():
            for table in _TABLES:
                self._db.execute(f"DELETE FROM {table} WHERE rowid > ?", (position[table],))

    # -- queries ----------------------------------------------------------------------------------------------------

    def dropped(self, after: int = 0) -> Iterator[tuple[str, int | None]]:
        """(prompt id, epoch in which it takes part again) of every decision to drop one, in their order; only of those
        after a position."""
        return iter(self._query("SELECT prompt_id, until FROM decisions WHERE rowid > ? AND decision = 'dropped' "
                                "ORDER BY rowid", (after,)))

    def mean_lengths(self, epochs: range) -> Iterator[tuple[str, float]]:
        """(prompt id, mean tokens of its responses) of each epoch and prompt, epochs in order."""
        return iter(self._query("SELECT prompt_id, CAST(tokens AS REAL) / samples FROM prompts "
                                "WHERE epoch BETWEEN ? AND ? ORDER BY epoch, rowid", (epochs.start, epochs.stop - 1)))

    def step_rewards(self, stage: str) -> list[StepReward]:
        """Each step of a stage, in order; the same floats as `fmean` over a step's rows."""
        with _errors(self.path):
            return step_rewards(self._db, stage)

    def same_prompts_since(self, epoch: int) -> int:
        """The first epoch with the prompts that an epoch has."""
        with _errors(self.path):
            return _same_prompts_since(_changes(self._db), epoch)

    def epochs_closed(self, stage: str) -> int:
        """Epochs that ended in a stage."""
        return int(self._query("SELECT COUNT(*) FROM epochs WHERE stage = ?", (stage,)).fetchone()[0])

    def dump(self) -> Iterable[str]:
        """The whole content as SQL text, rows in their order."""
        return self._db.iterdump()

    def close(self) -> None:
        self._db.close()

    def _decide(self, epoch: int, decisions: Iterable[Decision]) -> int:
        return self._db.executemany("INSERT INTO decisions VALUES (?, ?, ?, ?, ?)", (
            (epoch, *decision) for decision in decisions)).rowcount

    def _judge(self, epoch: int, judge: Callable[[Outcome], Verdict]) -> None:
        """A million prompts have a few dozen outcomes, and SQLite copies a verdict faster than Python reaches one."""
        outcomes = self._db.execute("SELECT DISTINCT samples, correct, mixed FROM prompts WHERE epoch = ?",
                                    (epoch,)).fetchall()
        self._db.execute("CREATE TEMP TABLE verdicts (samples, correct, mixed, decision, reason, until, "
                         "PRIMARY KEY (samples, correct, mixed))")
        self._db.executemany("INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", (
            (samples, correct, mixed, *judge(Outcome(samples, correct, bool(mixed))))
            for samples, correct, mixed in outcomes))
        self._db.execute(_JUDGED, (epoch,))
        self._db.execute("DROP TABLE verdicts")

    def _query(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        with _errors(self.path):
            return self._db.execute(sql, parameters)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _errors(self.path):
            self._begin()
            try:
                yield
            except BaseException:
                # On a full disk SQLite has already rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _begin(self) -> None:
        """Take all locks now, so that no reader can come between the rows and their commit."""
        try:
            self._db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            self._leave_readers_behind()
            self._db.execute("BEGIN EXCLUSIVE")

    def _leave_readers_behind(self) -> None:
        """Go on with a copy of the file in its place: whoever has the old one open keeps that, as it is."""
        log.warning("%s: another process has been reading it for %d s and made the run wait; the run goes on with a "
                    "copy, and that process sees nothing new until it opens the file again", self.path, PATIENCE)
        with replacing(self.path) as part, closing(sqlite3.connect(part)) as copy:
            self._db.backup(copy)
        self._db.close()
        self._db = self._open()


def step_rewards(db: sqlite3.Connection, stage: str, last: float = math.inf) -> list[StepReward]:
    """Each step of a stage up to step `last`, in order."""
    changes = _changes(db)
    steps = db.execute("SELECT reward, rollouts, epoch FROM steps WHERE stage = ? AND step <= ? ORDER BY rowid",
                       (stage, last))
    return [StepReward(reward, rollouts, _same_prompts_since(changes, epoch)) for reward, rollouts, epoch in steps]


def _changes(db: sqlite3.Connection) -> list[int]:
    """Epochs whose end took prompts away or gave some back, in order."""
    return [e for e, in db.execute("SELECT epoch FROM epochs WHERE dropped > 0 OR epoch IN "
                                   "(SELECT epoch FROM decisions WHERE decision = 'returned') ORDER BY epoch")]


def _same_prompts_since(changes: Sequence[int], epoch: int) -> int:
    return 1 + max((e for e in changes if e < epoch), default=0)


def _check_version(db: sqlite3.Connection, file: Path) -> None:
    if (found := db.execute("PRAGMA user_version").fetchone()[0]) != VERSION:
        raise UserError(f"{file}: is no ledger of this version of srpo (its user_version is {found}, not {VERSION}); "
                        "use the version that wrote it, or begin a new run")


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as e:
        passing = getattr(e, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL)
        raise (Fault if passing else UserError)(f"{file}: cannot read or write the ledger: {e}") from None
