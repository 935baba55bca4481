"""The ledger's tables as a person reads them. Every query reads one row a prompt and epoch, none a row a rollout."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

STATES = ("wrong", "mixed", "correct")
BINS = ("0", "to 25 %", "to 50 %", "to 75 %", "below 100 %", "100 %")
_BIN = """CASE WHEN correct = 0 THEN 0 WHEN correct = samples THEN 5 WHEN pass_rate <= 0.25 THEN 1
    WHEN pass_rate <= 0.5 THEN 2 WHEN pass_rate <= 0.75 THEN 3 ELSE 4 END"""


@dataclass(frozen=True)
class Only:
    """An epoch and a domain, or all."""

    epoch: int | None = None
    domain: str | None = None

    def where(self, epoch: str | None = "epoch", domain: str | None = "domain = :domain") -> str:
        """A condition on a column for the epoch and on the domain, of parameters :epoch and :domain; TRUE for all."""
        parts = [f"{epoch} = :epoch"] if epoch and self.epoch is not None else []
        parts += [domain] if domain and self.domain is not None else []
        return " AND ".join(parts) or "TRUE"

    @property
    def values(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "domain": self.domain}


def tables(db: sqlite3.Connection, only: Only, limit: int) -> Iterator[Table]:
    """Those that have something to say, in the order in which one asks."""
    for make in (epochs, pass_rates, flow, changes, unsolved, regressed):
        if (table := make(db, only, limit)).row_count:
            yield table


def epochs(db: sqlite3.Connection, only: Only, limit: int) -> Table:
    """All of them: `limit` is for prompts."""
    counts: dict[int, dict[str, int]] = defaultdict(dict)
    of_domain = "prompt_id IN (SELECT prompt_id FROM prompts WHERE domain = :domain)"
    for epoch, decision, prompts in db.execute(
            "SELECT epoch, decision, COUNT(*) FROM decisions "
            f"WHERE {only.where(domain=of_domain)} GROUP BY epoch, decision", only.values):
        counts[epoch][decision] = prompts
    closed = {epoch for epoch, in db.execute("SELECT epoch FROM epochs")}
    table = _table("Epochs", "epoch", "stage", "prompts", "kept", "dropped", "returned", "informative", "pass rate",
                   "rollouts", "mean tokens", text=("stage",))
    for epoch, stage, prompts, informative, samples, correct, tokens in db.execute(
            "SELECT epoch, MIN(stage), COUNT(*), SUM(spread > 0), SUM(samples), SUM(correct), SUM(tokens) FROM prompts "
            f"WHERE {only.where()} GROUP BY epoch ORDER BY epoch", only.values):
        decided = [f"{counts[epoch].get(what, 0):,}" if epoch in closed else "" for what in
                   ("kept", "dropped", "returned")]
        table.add_row(str(epoch), stage, f"{prompts:,}", *decided, _share(informative, prompts),
                      _share(correct, samples), f"{samples:,}", f"{tokens / samples:,.0f}")
    table.caption = "informative: groups whose rewards differ, so that they have an advantage"
    if any(epoch not in closed for epoch, in db.execute("SELECT DISTINCT epoch FROM prompts")):
        table.caption += "; the last epoch is not over"
    return table


def pass_rates(db: sqlite3.Connection, only: Only, limit: int) -> Table:
    """How prompts are distributed over pass rates, epoch by epoch."""
    table = _table("Pass rates: share of the prompts", "epoch", *BINS)
    found: dict[int, list[int]] = defaultdict(lambda: [0] * len(BINS))
    for epoch, place, prompts in db.execute(
            f"SELECT epoch, {_BIN}, COUNT(*) FROM pass_rates WHERE {only.where()} GROUP BY 1, 2 ORDER BY 1",
            only.values):
        found[epoch][place] = prompts
    for epoch, places in found.items():
        table.add_row(str(epoch), *(_share(n, sum(places)) for n in places))
    return table


def flow(db: sqlite3.Connection, only: Only, limit: int) -> Table:
    """The latest changes of epoch."""
    table = _table("From a prompt's epoch to its next", "epochs", "were", "prompts", *(f"now {s}" for s in STATES),
                   text=("were",))
    found: dict[tuple[int, int], dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for start, end, before, after, prompts in db.execute(
            "SELECT from_epoch, to_epoch, before, after, SUM(prompts) FROM flow "
            f"WHERE {only.where('to_epoch')} GROUP BY 1, 2, 3, 4 ORDER BY 2, 1", only.values):
        found[start, end][before][after] = prompts
    for (start, end), states in list(found.items())[-limit:]:
        for before in (state for state in STATES if state in states):
            table.add_row(f"{start} to {end}", before, f"{sum(states[before].values()):,}",
                          *(f"{states[before][after]:,}" for after in STATES),
                          end_section=before == max(states, key=STATES.index))
    return _rest(table, len(found), limit, "latest")


def changes(db: sqlite3.Connection, only: Only, limit: int) -> Table:
    """Who left and who came back, when and why."""
    of_domain = "prompt_id IN (SELECT prompt_id FROM prompts WHERE domain = :domain)"
    rows = db.execute(
        "SELECT epoch, decision, reason, until, COUNT(*) FROM decisions "
        f"WHERE decision <> 'kept' AND {only.where(domain=of_domain)} GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 5 DESC, 3",
        only.values).fetchall()
    table = _table("Dropped and returned", "after epoch", "prompts", "decision", "because", "back in",
                   text=("decision", "because"))
    for epoch, decision, reason, until, prompts in rows[-limit:]:
        back = "" if decision == "returned" else "never" if until is None else f"epoch {until}"
        table.add_row(str(epoch) if epoch else "at the start", f"{prompts:,}", decision, reason, back)
    return _rest(table, len(rows), limit, "latest")


def unsolved(db: sqlite3.Connection, only: Only, limit: int) -> Table:
    """No rollout of any epoch was fully correct; those that cost the most come first."""
    return _prompts(db, "Never solved", limit, {"prompt": str, "domain": str, "epochs": str, "last in": str,
                                                "rollouts": "{:,}".format},
                    "SELECT COUNT(*) OVER (), prompt_id, domain, epochs, last_epoch, samples FROM unsolved "
                    f"WHERE {only.where('last_epoch')} ORDER BY samples DESC, prompt_id LIMIT {limit}", only)


def regressed(db: sqlite3.Connection, only: Only, limit: int) -> Table:
    """Pass rates that fell from an epoch to the next one with the prompt, the largest falls first."""
    return _prompts(db, "Got worse", limit, {"prompt": str, "domain": str, "epochs": str, "pass rate": _percent,
                                             "then": _percent, "fell by": _percent},
                    "SELECT COUNT(*) OVER (), prompt_id, domain, from_epoch || ' to ' || to_epoch, pass_rate_before, "
                    f"pass_rate_after, fell FROM regressed WHERE {only.where('to_epoch')} "
                    f"ORDER BY fell DESC, prompt_id, to_epoch LIMIT {limit}", only)


def prompt(db: sqlite3.Connection, prompt_id: str) -> Table:
    """Every epoch that saw it or decided about it; an empty table for an unknown id."""
    table = _table(prompt_id, "epoch", "step", "stage", "correct", "pass rate", "state", "reward", "spread",
                   "mean tokens", "truncated", "decision", text=("stage", "state", "decision"))
    decided = {epoch: _decision(*rest) for epoch, *rest in db.execute(
        "SELECT epoch, decision, reason, until FROM decisions WHERE prompt_id = ? ORDER BY rowid", (prompt_id,))}
    seen = {row[0]: row for row in db.execute(
        "SELECT epoch, step, stage, correct, samples, state, reward, spread, mean_tokens, truncated, trained, domain "
        "FROM pass_rates WHERE prompt_id = ? ORDER BY epoch", (prompt_id,))}
    for epoch in sorted({*seen, *decided}):
        if epoch not in seen:
            table.add_row(str(epoch), *[""] * 9, decided[epoch])
            continue
        _, step, stage, correct, samples, state, reward, spread, tokens, truncated, trained, domain = seen[epoch]
        table.title = f"{prompt_id} ({domain})"
        table.add_row(str(epoch), str(step), stage, f"{correct} of {samples}", _percent(correct / samples), state,
                      f"{reward:.3f}", f"{spread:.3f}", f"{tokens:,.0f}", str(truncated),
                      decided.get(epoch, "") + ("" if trained else " (not trained on)"))
    return table


def _decision(decision: str, reason: str, until: int | None) -> str:
    back = f", back in epoch {until}" if until is not None else ""
    return f"{decision}: {reason}{back}"


def _prompts(db: sqlite3.Connection, title: str, limit: int, columns: dict[str, Any], query: str, only: Only) -> Table:
    """A line a prompt; the query's first column is how many there are in all."""
    table = _table(title, *columns, text=("prompt", "domain"))
    rows = db.execute(query, only.values).fetchall()
    for _, *values in rows:
        table.add_row(*(form(value) for form, value in zip(columns.values(), values, strict=True)))
    total = rows[0][0] if rows else 0
    table.title = f"{title}: {total:,}"
    return _rest(table, total, limit, "first")


def _table(title: str, *columns: str, text: Iterable[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right",
                         overflow="fold" if column == "prompt" else "ellipsis")
    return table


def _rest(table: Table, total: int, limit: int, which: str) -> Table:
    if total > limit:
        table.caption = f"the {which} {limit} of {total:,}; --limit shows more"
    return table


def _share(part: int, whole: int) -> str:
    return _percent(part / whole)


def _percent(share: float) -> str:
    return f"{share:.1%}"
