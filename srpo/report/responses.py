"""Which of a run's stored responses the page holds: few enough to stay small, from all of training and all outcomes."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from srpo import samples
from srpo.report.page import embedded

STEPS = 40
"""Steps that the page shows responses of, evenly over the run."""
CHARACTERS = 4000
"""Of a prompt or a response; the middle of a longer one is left out."""
FIELDS = ("step", "epoch", "stage", "prompt_id", "sample", "domain", "prompt", "response", "correct", "reward", "parts",
          "reason", "tokens", "truncated", "failed")


def choose(run: Path, size: int) -> dict[str, Any]:
    """{"stored": steps with stored responses, "shown": steps here, "fields": names, "rows": values in that order}.

    At most `size` bytes in the page: each step has its equal part of them, and takes one response at a time from each
    of its domains, right and wrong in turn, in the stored order.
    """
    stored = stored_steps(run)
    chosen = _evenly(stored, STEPS)
    rows: list[list[Any]] = []
    for step in chosen:
        kinds: dict[tuple[str, bool], list[list[Any]]] = {}
        for batch in samples.read(run, step, FIELDS):
            for row in batch.to_pylist():
                kinds.setdefault((row["domain"], row["correct"] >= 1), []).append(_row(row))
        left = size // len(chosen)
        for row in (row for turn in zip_longest(*(kinds[key] for key in sorted(kinds))) for row in turn if row):
            left -= len(embedded(row)) + 1
            if left < 0:
                break
            rows.append(row)
    return {"stored": len(stored), "shown": len(chosen), "fields": FIELDS, "rows": rows}


def stored_steps(run: Path) -> list[int]:
    """Steps with stored responses; none, without an error, where the run stores none or has only begun."""
    return samples.steps(run) if any((run / "samples").glob("step-*.parquet")) else []


def _row(row: dict[str, Any]) -> list[Any]:
    return [clip(value) if isinstance(value := row[name], str) else value for name in FIELDS]


def clip(text: str) -> str:
    """The beginning and the end of a long text: the answer is at the end."""
    left_out = len(text) - CHARACTERS
    if left_out <= 0:
        return text
    head = CHARACTERS * 2 // 3
    return f"{text[:head]}\n[... {left_out:,} characters left out ...]\n{text[head + left_out:]}"


def _evenly(steps: list[int], count: int) -> list[int]:
    """`count` of the steps, the first and the last among them."""
    if len(steps) <= count:
        return steps
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
