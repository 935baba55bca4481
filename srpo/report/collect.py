"""Everything that the page shows of a run, as one JSON-able dictionary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from srpo import __version__
from srpo.analysis.frequency import frequencies, pooled
from srpo.analysis.patterns import Patterns
from srpo.control.ledger import connect
from srpo.errors import UserError
from srpo.report import ledger, responses, series

POINTS = 4000
"""Points of a curve, over all runs; each has its part, at most 1,000."""
ANALYSED = 100
"""Steps in whose stored responses patterns are looked for, at most, evenly over the run."""
TEXT = 1_600_000
"""Bytes of prompts and responses, over all runs."""


def collect(runs: Sequence[Path]) -> dict[str, Any]:
    """{"version", "bins": names of `ledger.BINS`, "runs": [...]}. Raises UserError where a run cannot be read."""
    if files := [path for path in runs if path.is_file()]:  # a ledger alone would make half a page
        raise UserError(f"{files[0]}: is a file; give the run folder")
    names = _names(runs)
    return {"version": __version__, "bins": ledger.BINS,
            "runs": [_run(path, name, len(runs)) for path, name in zip(runs, names, strict=True)]}


def _run(path: Path, name: str, runs: int) -> dict[str, Any]:
    with closing(connect(path)) as db:
        db.execute("BEGIN")  # one state of a ledger that grows
        steps, epochs, flow = ledger.steps(db), ledger.epochs(db), ledger.flow(db)
        events, totals = ledger.events(db), ledger.totals(db)
    metrics = series.read_metrics(path / "metrics.jsonl")
    table = series.columns(steps, metrics, max(100, min(1000, POINTS // runs)))
    return {
        "name": name, "path": str(path), "finished": (path / "hf").is_dir(), "config": _config(path / "config.yaml"),
        "stages": _stages(steps), "steps": len(steps), "totals": {k: series.rounded(v) for k, v in totals.items()},
        **table, "epochs": epochs, "flow": flow, "events": events, "patterns": _patterns(path),
        "responses": responses.choose(path, TEXT // runs),
    }


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    parts = [path.resolve().parts for path in runs]
    if len(set(parts)) < len(parts):
        raise UserError("a run is named twice; give each once")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def _stages(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stages in order, each with its first and last step."""
    stages: list[dict[str, Any]] = []
    for row in steps:
        if not stages or stages[-1]["name"] != row["stage"]:
            stages.append({"name": row["stage"], "first": row["step"]})
        stages[-1]["last"] = row["step"]
    return stages


def _config(path: Path) -> dict[str, Any]:
    """Settings by dotted name; lists as text."""
    if not path.exists():
        return {}
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
            for i, inner in enumerate(value):
                add(f"{prefix}.{i}", inner)
        else:
            flat[prefix] = ", ".join(map(str, value)) if isinstance(value, list) else value

    add("", yaml.safe_load(path.read_text(encoding="utf-8")))
    return flat


def _patterns(path: Path) -> dict[str, Any]:
    """{pattern: {"about": text, "domains": {domain or "all": {"step": [...], "responses": [...], "matching": [...],
    "share": [...], "tokens_with": [...], "tokens_without": [...]}}}}; see srpo/analysis/frequency.py."""
    if not (stored := responses.stored_steps(path)):
        return {}
    patterns = Patterns.load()
    stride = math.ceil(len(stored) / ANALYSED)
    rows = frequencies(path, patterns, range(stored[0], stored[-1] + 1, stride))
    names = ("step", "responses", "matching", "share", "tokens_with", "tokens_without")
    found: dict[str, Any] = {}
    for domain, some in {"all": pooled(rows, "step", "pattern"),
                         **{d: [r for r in rows if r.domain == d] for d in sorted({r.domain for r in rows})}}.items():
        for row in some:
            entry = found.setdefault(row.pattern, {"about": patterns.patterns[row.pattern].about, "domains": {}})
            table = entry["domains"].setdefault(domain, {name: [] for name in names})
            for name in names:
                table[name].append(series.rounded(getattr(row, name)))
    return found
