"""What the report takes from a ledger: a row a step and domain, epochs, the flow of prompts between epochs, events.

The reward and length curves come from here rather than from metrics.jsonl, so that responses of groups that an update
went without count too.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import Any

BINS = ("never solved", "below half", "half or more", "always solved", "not in the epoch")
"""Where a prompt is in an epoch, by the share of its rollouts that were fully correct."""
LATEST = 12
"""Epochs whose flow is shown, the latest ones."""
_ALL = "all"

_STEPS = """
SELECT step, domain, MAX(epoch), MAX(stage), COUNT(*) AS groups, SUM(samples) AS rollouts, SUM(reward * samples),
    SUM(tokens), SUM(truncated), SUM(spread = 0) AS identical, SUM(spread = 0 AND correct = samples),
    SUM(spread = 0 AND correct = 0), SUM(spread > 0 AND trained)
FROM prompts GROUP BY step, domain ORDER BY step, domain
"""


def steps(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """A dictionary a step: step, epoch, stage and, for each domain and for "all", NAME/DOMAIN of

    reward, length: means over responses; truncated: share of responses; identical, identical_correct, identical_wrong:
    share of groups whose responses have one reward, and are all right or all wrong; rollouts; advantage: groups that
    have an advantage and that the update used, and advantage_rate: their number per 1,000 rollouts.
    """
    found: dict[int, dict[str, Any]] = {}
    sums: dict[int, dict[str, float]] = {}
    for step, domain, epoch, stage, *values in db.execute(_STEPS):
        row = found.setdefault(step, {"step": step, "epoch": epoch, "stage": stage})
        part = dict(zip(_SUMS, values, strict=True))
        total = sums.setdefault(step, dict.fromkeys(_SUMS, 0))
        for name, value in part.items():
            total[name] += value
        row |= _figures(part, domain)
    for step, total in sums.items():
        found[step] |= _figures(total, _ALL)
    return list(found.values())


_SUMS = ("groups", "rollouts", "reward", "tokens", "truncated", "identical", "correct", "wrong", "advantage")


def _figures(sums: Mapping[str, float], domain: str) -> dict[str, float]:
    groups, rollouts = sums["groups"], sums["rollouts"]
    figures = {
        "reward": sums["reward"] / rollouts, "length": sums["tokens"] / rollouts,
        "truncated": sums["truncated"] / rollouts, "identical": sums["identical"] / groups,
        "identical_correct": sums["correct"] / groups, "identical_wrong": sums["wrong"] / groups,
        "rollouts": rollouts, "advantage": sums["advantage"], "advantage_rate": 1000 * sums["advantage"] / rollouts,
    }
    return {f"{name}/{domain}": value for name, value in figures.items()}


def epochs(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """Closed epochs in order: epoch, stage, prompts, kept, dropped, returned."""
    names = ("epoch", "stage", "prompts", "kept", "dropped", "returned")
    return [dict(zip(names, row, strict=True))
            for row in db.execute(f"SELECT {', '.join(names)} FROM retention ORDER BY epoch")]


def flow(db: sqlite3.Connection) -> dict[str, Any]:
    """How many prompts went from which of `BINS` to which, between each two closed epochs that follow one another.

    {"epochs": the latest of them, "flow": for each but the last the counts, as [from][to]}
    """
    closed = [epoch for epoch, in db.execute("SELECT epoch FROM epochs ORDER BY epoch")][-LATEST:]
    everywhere = len(BINS) - 1
    counts = []
    before: dict[str, int] | None = None
    for epoch in closed:
        now = {prompt: _bin(correct, samples) for prompt, correct, samples in db.execute(
            "SELECT prompt_id, SUM(correct), SUM(samples) FROM prompts WHERE epoch = ? GROUP BY prompt_id", (epoch,))}
        if before is not None:
            moved = Counter((before.get(prompt, everywhere), now.get(prompt, everywhere))
                            for prompt in before.keys() | now.keys())
            counts.append([[moved[a, b] for b in range(len(BINS))] for a in range(len(BINS))])
        before = now
    return {"epochs": closed, "flow": counts}


def _bin(correct: int, samples: int) -> int:
    if correct == 0:
        return 0
    if correct == samples:
        return 3
    return 1 if 2 * correct < samples else 2


def events(db: sqlite3.Connection) -> list[list[Any]]:
    """[step, kind, detail] in order."""
    return [list(row) for row in db.execute("SELECT step, kind, detail FROM events ORDER BY rowid")]


def totals(db: sqlite3.Connection) -> dict[str, Any]:
    """Of the whole run: prompts, groups, rollouts, tokens; shares of groups with one reward and with an advantage."""
    prompts, groups, rollouts, tokens, identical, used = db.execute(
        "SELECT COUNT(DISTINCT prompt_id), COUNT(*), SUM(samples), SUM(tokens), AVG(spread = 0), "
        "AVG(spread > 0 AND trained) FROM prompts").fetchone()
    return {"prompts": prompts, "groups": groups, "rollouts": rollouts or 0, "tokens": tokens or 0,
            "identical": identical, "advantage": used}
