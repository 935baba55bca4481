"""The ledger: one SQLite row a rollout, from which resampling, stages and reports are derived.

A step's rows are committed, and on the disk, before the optimizer sees the step. A checkpoint stores `position()`;
resuming from it deletes what came later, and since SQLite numbers a new row one above the largest, rows written
again after a rollback are the same rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from srpo.errors import UserError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rollouts (
    epoch INTEGER NOT NULL, step INTEGER NOT NULL, stage TEXT NOT NULL, prompt_id TEXT NOT NULL,
    sample INTEGER NOT NULL, domain TEXT NOT NULL, correct REAL NOT NULL, reward REAL NOT NULL,
    tokens INTEGER NOT NULL, truncated INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS rollouts_epoch ON rollouts (epoch);
CREATE TABLE IF NOT EXISTS epochs (
    epoch INTEGER NOT NULL, stage TEXT NOT NULL, prompts INTEGER NOT NULL, kept INTEGER NOT NULL,
    dropped INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS events (step INTEGER NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL);
"""
_TABLES = ("rollouts", "epochs", "events")

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


_values = attrgetter(*(f.name for f in fields(RolloutRow)))


class Ledger:
    """Opens or creates the file. Any method raises UserError when the file cannot be read or written (full disk,
    locked by another run, not a ledger)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with self._errors():
            # Transactions are explicit; FULL syncs the write-ahead log at every commit, so that a committed step
            # survives a power cut too, and readers never block the run.
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)

    def append(self, rows: Sequence[RolloutRow]) -> None:
        """Commit the rows of one step in one durable transaction. Raises ValueError when the step is not a new one."""
        last = self._query("SELECT step FROM rollouts ORDER BY rowid DESC LIMIT 1").fetchone()
        if rows and last and rows[0].step <= last[0]:
            raise ValueError(f"{self.path}: already holds step {last[0]}, cannot append step {rows[0].step}")
        with self._transaction():
            self._db.executemany("INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_values, rows))

    def close_epoch(self, epoch: int, stage: str, *, prompts: int, dropped: int) -> None:
        """Record an epoch's end: prompts rolled out in it, and how many of them leave."""
        with self._transaction():
            self._db.execute("INSERT INTO epochs VALUES (?, ?, ?, ?, ?)",
                             (epoch, stage, prompts, prompts - dropped, dropped))

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

    def solved(self, epochs: range, drop_at: float) -> Iterator[tuple[int, str]]:
        """(epoch, prompt id) wherever at least `drop_at` of a prompt's rollouts in that epoch were fully correct."""
        return iter(self._query(
            "SELECT epoch, prompt_id FROM rollouts WHERE epoch BETWEEN ? AND ? GROUP BY epoch, prompt_id "
            "HAVING AVG(correct >= 1.0) >= ? ORDER BY epoch", (epochs.start, epochs.stop - 1, drop_at)))

    def mean_lengths(self, epochs: range) -> Iterator[tuple[str, float]]:
        """(prompt id, mean tokens of its responses) of each epoch and prompt, epochs in order."""
        return iter(self._query(
            "SELECT prompt_id, AVG(tokens) FROM rollouts WHERE epoch BETWEEN ? AND ? GROUP BY epoch, prompt_id "
            "ORDER BY epoch", (epochs.start, epochs.stop - 1)))

    def step_rewards(self, stage: str) -> list[float]:
        """Mean reward of each step of a stage, in order; the same floats as `fmean` over a step's rows."""
        rows = self._query("SELECT step, reward FROM rollouts WHERE stage = ? ORDER BY rowid", (stage,))
        return [fmean(reward for _, reward in group) for _, group in groupby(rows, itemgetter(0))]

    def epochs_closed(self, stage: str) -> int:
        """Epochs that ended in a stage."""
        return int(self._query("SELECT COUNT(*) FROM epochs WHERE stage = ?", (stage,)).fetchone()[0])

    def dump(self) -> Iterable[str]:
        """The whole content as SQL text, rows in their order."""
        return self._db.iterdump()

    def close(self) -> None:
        self._db.close()

    def _query(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        with self._errors():
            return self._db.execute(sql, parameters)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                # On a full disk SQLite has already rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as e:
            raise UserError(f"{self.path}: cannot read or write the ledger: {e}") from None
