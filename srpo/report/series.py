"""A run's step-by-step figures as columns: the ledger's and those of metrics.jsonl, thinned where there are many."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from srpo.errors import UserError

DIGITS = 6
"""Significant digits of a number in the page."""
_LAST = {"step", "epoch", "stage", "rollouts", "hours", "advantage"}
"""Columns of which a bin of steps shows its last value: names, and sums over the run so far."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, a dictionary each; none where there is no file. A last line that is not whole, as a
    run that goes on may have it, is left out. Raises UserError naming a damaged line."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as e:
            raise UserError(f"{path}:{number}: not valid JSON: {e.msg}; remove the line") from None
    return rows


def columns(ledger: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]], points: int) -> dict[str, Any]:
    """{"steps_per_point": k, "columns": {name: values}, "evaluations": {name: [[step, rollouts, hours, value], ...]}}.

    The ledger's names are as in `ledger.steps`, a metric's is "metrics:NAME"; `rollouts`, `hours` (of the steps'
    time) and `advantage` are sums from the first step on. Where there are more than `points` steps, a point is the mean
    of k that follow one another, or the last of them for sums and names. A value that is missing is None.
    """
    measured = {row["step"]: row for row in metrics if "reward/mean" in row}
    rows = []
    for row in ledger:
        own = {f"metrics:{key}": value for key, value in measured.get(row["step"], {}).items()
               if key not in ("step", "epoch", "stage") and not key.startswith("eval/")}
        rows.append(row | {name: value for name, value in own.items() if _finite(value)})
    sums = {
        "rollouts": list(accumulate(row["rollouts/all"] for row in rows)),
        "advantage": list(accumulate(row["advantage/all"] for row in rows)),
        "hours": list(accumulate(row.get("metrics:time/step", 0.0) / 3600 for row in rows)),
    }
    for i, row in enumerate(rows):
        row |= {name: values[i] for name, values in sums.items()}
    size = max(1, math.ceil(len(rows) / points))
    bins = [rows[i:i + size] for i in range(0, len(rows), size)]
    names = dict.fromkeys(name for row in rows for name in row)
    return {"steps_per_point": size, "columns": {name: [_point(b, name) for b in bins] for name in names},
            "evaluations": _evaluations(rows, metrics)}


def _point(rows: Sequence[dict[str, Any]], name: str) -> Any:
    values = [row[name] for row in rows if name in row]
    if not values:
        return None
    return rounded(values[-1] if name in _LAST else fmean(values))


def _evaluations(rows: Sequence[dict[str, Any]], metrics: Iterable[dict[str, Any]]) -> dict[str, list[list[float]]]:
    spent = {row["step"]: (row["rollouts"], rounded(row["hours"])) for row in rows} | {0: (0, 0.0)}
    found: dict[str, list[list[float]]] = {}
    for row in metrics:
        for key, value in row.items():
            if key.startswith("eval/") and _finite(value) and row["step"] in spent:
                found.setdefault(key, []).append([row["step"], *spent[row["step"]], rounded(value)])
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def rounded(value: Any) -> Any:
    """A float to `DIGITS` significant digits; anything else as it is."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
