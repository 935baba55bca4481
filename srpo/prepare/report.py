"""The two tables that `srpo prepare` writes, and the counts by rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from srpo.files import write_json, write_table
from srpo.terminal import new_table

_TEXT = ("id", "domain", "prompt", "answer", "tests", "solution", "source")
TRAIN = pa.schema([*((name, pa.string()) for name in _TEXT), ("pass_rate", pa.float64()), ("difficulty", pa.string())])
REJECTED = pa.schema([(name, pa.string()) for name in ("rule", "detail", "where", *_TEXT)])


def write(rows: Sequence[dict[str, Any]], out: Path, console: Console) -> dict[str, Any]:
    """Write train.parquet, rejected.parquet and summary.json; print and return the summary:
    {source: {"rows": n, "kept": n, rule: n, ...}}."""
    kept = [row for row in rows if not row["rule"]]
    write_table(out / "train.parquet", pa.Table.from_pylist(kept, TRAIN))
    write_table(out / "rejected.parquet", pa.Table.from_pylist([row for row in rows if row["rule"]], REJECTED))
    summary: dict[str, Any] = {}
    for row in rows:
        counts = summary.setdefault(row["source"], Counter(rows=0, kept=0))
        counts.update(("rows", row["rule"] or "kept", *filter(None, [row.get("difficulty")])))
    write_json(out / "summary.json", summary)
    console.print(_table(summary))
    return summary


def _table(summary: dict[str, Any]) -> Table:
    """A line a rule, a column a source."""
    table = new_table("Rows by the rule that dropped them", "rule", *summary, "all", text=("rule",))
    totals = sum((Counter(c) for c in summary.values()), Counter())
    first = ("rows", "kept", *(n for n in ("easy", "medium", "hard") if n in totals))
    for name in (*first, *(rule for rule, _ in totals.most_common() if rule not in first)):
        table.add_row(name, *(f"{c[name]:,}" if c[name] else "" for c in (*summary.values(), totals)),
                      end_section=name == first[-1])
    return table
