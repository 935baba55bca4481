"""`srpo analyze`: count and print, or print stored responses."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.rule import Rule
from rich.text import Text

from srpo import samples
from srpo.analysis import report
from srpo.analysis.frequency import Analysis, analyse, wilson
from srpo.analysis.patterns import DEFAULT, Patterns
from srpo.errors import UserError
from srpo.printable import visible, visible_json
from srpo.terminal import Terminal


def analyze(run: Path, file: Path | None, shown: int, as_json: bool) -> None:
    """Raises UserError for a bad file of patterns, or a run without stored responses."""
    if shown < 0:
        raise UserError(f"--examples {shown}: give 0 or more")
    patterns = Patterns.load(file or DEFAULT)
    analysis = analyse(run, patterns, shown)
    if as_json:
        print(visible_json(json.dumps(document(run, patterns, analysis), ensure_ascii=False)))
    else:
        report.show(run, patterns, analysis)


def document(run: Path, patterns: Patterns, analysis: Analysis) -> dict[str, object]:
    """JSON-able; `low` and `high` bound the frequency at 95 % confidence."""
    rows = []
    for row in analysis.frequencies:
        low, high = wilson(row.matching, row.responses)
        rows.append({**asdict(row), "frequency": row.share, "low": low, "high": high})
    definitions = {name: pattern.model_dump(exclude_none=True) for name, pattern in patterns.patterns.items()}
    return {"run": str(run), "patterns": {"file": str(patterns.file), "definitions": definitions}, "frequencies": rows,
            "keywords": analysis.keywords, "examples": [asdict(example) for example in analysis.examples]}


def show(run: Path, which: str) -> None:
    """Print the stored responses of a step (a number) or to a prompt (its id)."""
    console = Terminal()
    stored = samples.steps(run)
    found = 0
    for step in [int(which)] if which.isdecimal() and int(which) in stored else stored:
        for batch in samples.read(run, step):
            for row in batch.to_pylist():
                if which in (str(step), row["prompt_id"]):
                    found += 1
                    _print(console, row)
    if not found:
        raise UserError(f"--show {which}: {run} has no stored responses of such a step, or to a prompt of that id; "
                        f"stored are steps {stored[0]} to {stored[-1]}")


def _print(console: Terminal, row: dict[str, object]) -> None:
    console.print(Rule(f"step {row['step']}, {row['stage']}: {row['prompt_id']}, sample {row['sample']}", align="left"))
    console.print(Text(visible(str(row["prompt"])), style="dim"), Text(visible(str(row["response"]))), sep="")
    verdict = f"correct {row['correct']:g}, reward {row['reward']:g} {row['parts']}, {row['tokens']} tokens"
    more = ", cut off" if row["truncated"] else ""
    console.print(Text(visible(f"{verdict}{more}: {row['reason']}"), style="bold"))
