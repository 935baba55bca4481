"""What a run's closed epochs showed, as the forecast needs it: a history of outcomes a prompt, equal ones counted once.

Read from the ledger's table `prompts`. Prompts of domains that the latest epoch did not have are left out, and the
epochs before the first that saw any of the others; an open epoch is not read. Of a long run the latest epochs are
taken; a prompt that they did not have counts with its latest outcome before, as if it were of the first of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from srpo.control.ledger import connect
from srpo.errors import UserError

LATEST = 6
"""Epochs that a forecast looks back on."""
_ROWS = 100_000
"""Read from the ledger at a time."""


@dataclass(frozen=True)
class Observed:
    """`histories` [H, E], int32: of each distinct history and closed epoch, the index of its outcome in `outcomes`, -1
    where the epoch did not have the prompt; `prompts` [H]: how many prompts share it."""

    epochs: list[int]
    stages: list[str]
    """Of each epoch."""
    outcomes: list[tuple[int, int]]
    """Distinct (samples, correct)."""
    histories: npt.NDArray[np.int32]
    prompts: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]
    """[E, len(outcomes)]: groups that updates used, of any domain."""
    samples: int
    """Of a group, in the latest epoch."""
    prompts_per_step: int

    @property
    def signals(self) -> npt.NDArray[np.float64]:
        """[E]: `signal` of the groups that each epoch trained on, in full batches."""
        each = np.array([signal(samples)[correct] for samples, correct in self.outcomes])
        return self.trained @ each / self.prompts_per_step


def signal(samples: int) -> npt.NDArray[np.float64]:
    """[samples + 1]: how far a group with that many correct responses moves the policy: 2 sqrt(k/G (1 - k/G)).

    For a policy with one log-odds x a prompt, d log pi(r) / dx = r - p; averaged over a group, times the advantages
    (r - mean) / std, that is exactly the standard deviation of the group's correctness. At one half it is scaled to 1.
    """
    rate = np.arange(samples + 1) / samples
    return 2 * np.sqrt(rate * (1 - rate))


def observed(run: str | Path, last: int | None = None) -> Observed:
    """The closed epochs of a run, up to epoch `last`. Raises UserError when there is none."""
    with closing(connect(run)) as db:
        rows = db.execute("SELECT epoch, stage FROM epochs ORDER BY epoch").fetchall()
        closed = [(epoch, stage) for epoch, stage in rows if last is None or epoch <= last]
        if not closed:
            which = "no epoch has" if not rows else f"none of epochs 1 to {last} has"
            raise UserError(f"{run}: {which} closed yet; a forecast needs the pass rates of one")
        return _observed(db, closed)


def _observed(db: sqlite3.Connection, closed: Sequence[tuple[int, str]]) -> Observed:
    """`closed`: (epoch, stage) of all that may be looked at."""
    first = db.execute("SELECT MIN(epoch) FROM prompts WHERE domain IN (SELECT domain FROM prompts WHERE epoch = ?)",
                       (closed[-1][0],)).fetchone()[0]
    closed = [(epoch, stage) for epoch, stage in closed if epoch >= first][-LATEST:]
    codes, histories, prompts = _histories(db, [epoch for epoch, _ in closed])
    # The latest may begin with epochs of other domains alone.
    begin = int((histories >= 0).any(0).argmax())
    closed, histories = closed[begin:], histories[:, begin:]
    epochs = [epoch for epoch, _ in closed]
    trained = np.zeros((len(epochs), len(codes)), np.int64)
    for epoch, samples, correct, groups in db.execute(
            "SELECT epoch, samples, correct, SUM(trained) FROM prompts WHERE epoch <= ? GROUP BY 1, 2, 3",
            (epochs[-1],)):
        # Outcomes that only prompts left out had, and epochs that none of the others saw, are of no use here.
        if epoch in epochs and (samples, correct) in codes:
            trained[epochs.index(epoch), codes[samples, correct]] = groups
    samples = db.execute("SELECT MAX(samples) FROM prompts WHERE epoch = ?", (epochs[-1],)).fetchone()[0]
    step = db.execute("SELECT MAX(n) FROM (SELECT SUM(trained) n FROM prompts WHERE epoch <= ? GROUP BY step)",
                      (epochs[-1],)).fetchone()[0]
    return Observed(epochs, [stage for _, stage in closed], list(codes), histories, prompts, trained, samples,
                    max(step, 1))


def _histories(db: sqlite3.Connection, epochs: Sequence[int]) -> tuple[dict[tuple[int, int], int], Any, Any]:
    """Outcomes, histories, prompts. While rows are read, column 0 is of all epochs before `epochs`."""
    rows = db.execute(
        "SELECT prompt_id, epoch, samples, correct FROM prompts WHERE epoch <= ? AND domain IN "
        "(SELECT DISTINCT domain FROM prompts WHERE epoch = ?) ORDER BY rowid", (epochs[-1], epochs[-1]))
    column = {epoch: i for i, epoch in enumerate(epochs, 1)}
    index: dict[str, int] = {}
    codes: dict[tuple[int, int], int] = {}
    table = np.full((0, len(epochs) + 1), -1, np.int32)
    while chunk := rows.fetchmany(_ROWS):
        places = [(index.setdefault(prompt, len(index)), column.get(epoch, 0),
                   codes.setdefault((samples, correct), len(codes))) for prompt, epoch, samples, correct in chunk]
        if len(index) > len(table):
            grown = np.full((max(len(index), 2 * len(table)), len(epochs) + 1), -1, np.int32)
            grown[:len(table)] = table
            table = grown
        prompt_at, epoch_at, code = np.array(places).T
        table[prompt_at, epoch_at] = code
    table = table[:len(index)]
    absent = (table[:, 1:] < 0).all(1)
    table[absent, 1] = table[absent, 0]
    histories, prompts = np.unique(table[:, 1:], axis=0, return_counts=True)
    return codes, histories, prompts
