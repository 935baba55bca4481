"""An analysis as tables: over training, by domain and stage, by keyword, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from srpo.analysis.examples import Example
from srpo.analysis.frequency import Analysis, Frequency, pooled, wilson
from srpo.analysis.patterns import Patterns
from srpo.printable import visible
from srpo.terminal import new_table, wide

BINS = 8
"""Columns of equally many steps."""
KEYWORDS = 8
"""Of each pattern, the most frequent ones."""
WIDTH = 70
"""Characters of a keyword."""


def show(run: Path, patterns: Patterns, analysis: Analysis) -> None:
    console = wide()
    rows = analysis.frequencies
    steps = sorted({row.step for row in rows})
    console.print(f"{run}: stored responses of {len(steps):,} steps, {steps[0]} to {steps[-1]}; patterns of "
                  f"{patterns.file}", highlight=False)
    for name, pattern in patterns.patterns.items():
        console.print(f"  {name}: {pattern.about}", highlight=False)
    console.print(_over_steps("Frequency, %", rows, steps, lambda row: f"{100 * row.share:.1f}"))
    console.print(_over_steps("Mean tokens of responses with the pattern", rows, steps,
                              lambda row: _number(row.tokens_with, ",.0f")))
    console.print(_by_stage(rows))
    console.print(_keywords(analysis, rows))
    for example in analysis.examples:
        console.print(_example(example))


def _over_steps(title: str, rows: Sequence[Frequency], steps: Sequence[int],
                value: Callable[[Frequency], str]) -> Table:
    """A line a pattern and domain, a column a bin of steps."""
    bins = _bins(steps)
    heads = (f"{first}" if first == last else f"{first}-{last}" for first, last in dict.fromkeys(bins.values()))
    table = _table(title, "pattern", "domain", *heads)
    binned = pooled((replace(row, step=bins[row.step][0]) for row in rows), "pattern", "domain", "step")
    for pattern in dict.fromkeys(row.pattern for row in rows):
        for domain in sorted({row.domain for row in rows}):
            cells = {row.step: value(row) for row in binned if (row.pattern, row.domain) == (pattern, domain)}
            if cells:
                table.add_row(pattern, domain, *(cells.get(first, "") for first, _ in dict.fromkeys(bins.values())))
    return table


def _bins(steps: Sequence[int]) -> dict[int, tuple[int, int]]:
    """First and last step of each step's bin."""
    count = min(BINS, len(steps))
    place = {step: i * count // len(steps) for i, step in enumerate(steps)}
    edges: dict[int, tuple[int, int]] = {}
    for _, group in groupby(steps, place.__getitem__):
        members = list(group)
        edges |= dict.fromkeys(members, (members[0], members[-1]))
    return edges


def _by_stage(rows: Sequence[Frequency]) -> Table:
    table = _table("By stage and domain; frequency with its 95 % interval, means with and without the pattern",
                   "pattern", "stage", "domain", "responses", "with it", "%", "from", "to", "tokens", "without",
                   "accuracy", "without")
    every = pooled(rows, "pattern", "stage", "domain")
    for pattern in dict.fromkeys(row.pattern for row in rows):
        for row in (row for row in every if row.pattern == pattern):
            low, high = wilson(row.matching, row.responses)
            table.add_row(pattern, row.stage, row.domain, f"{row.responses:,}", f"{row.matching:,}",
                          *(f"{100 * x:.1f}" for x in (row.share, low, high)),
                          _number(row.tokens_with, ",.0f"), _number(row.tokens_without, ",.0f"),
                          _number(row.accuracy_with, ".3f"), _number(row.accuracy_without, ".3f"))
    return table


def _keywords(analysis: Analysis, rows: Sequence[Frequency]) -> Table:
    table = _table(f"Responses with a keyword; the {KEYWORDS} most frequent of each pattern", "pattern", "keyword",
                   "responses", "%")
    for column in table.columns[:2]:
        column.overflow = "fold"
    totals = {row.pattern: row.responses for row in pooled(rows, "pattern")}
    for name, counts in analysis.keywords.items():
        for keyword, count in counts.most_common(KEYWORDS):
            keyword = keyword if len(keyword) <= WIDTH else f"{keyword[:WIDTH - 3]}..."
            table.add_row(name, Text(keyword), f"{count:,}", f"{100 * count / totals[name]:.1f}")
    return table


def _example(example: Example) -> Text:
    head = (f"{example.pattern}: step {example.step}, {example.prompt_id}, sample {example.sample}, "
            f"correct {example.correct:g}, {example.tokens:,} tokens\n")
    before, after = (visible(text.replace("\n", " ")) for text in (example.before, example.after))
    return Text.assemble((visible(head), "bold"), f"  ... {before}", (f">>{visible(example.match)}<<", "reverse"),
                         f"{after} ...\n")


def _table(title: str, *columns: str) -> Table:
    return new_table(title, *columns, text=("pattern", "stage", "domain", "keyword"), title_justify="left",
                     box=SIMPLE_HEAD)


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)
