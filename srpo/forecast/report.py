"""Forecasts, back-tests and comparisons as tables on the console."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from srpo.forecast.predict import REACH


def show_forecast(made: dict[str, Any], console: Console) -> None:
    table = _table(f"The next epochs of {made['run']}, by sampler (90 % intervals)", "sampler", "epoch", "prompts",
                   "informative", "rollouts", "rollouts/group", "steps")
    for name, of in made["of"].items():
        for i, row in enumerate(of["epochs"]):
            table.add_row("" if i else name, str(row["epoch"]), _range(row["prompts"], _count),
                          _range(row["informative_share"], _percent), _count(row["rollouts"]["mid"]),
                          _range(row["rollouts_per_informative_group"], _cost), f"{row['steps']:,.0f}",
                          end_section=i == len(of["epochs"]) - 1)
    console.print(table)
    console.print("rollouts/group: for each informative group that an update uses\n")
    out = _table("First epoch whose informative groups would not fill a step", "sampler", "epoch", "at the earliest",
                 "at the latest")
    for name, of in made["of"].items():
        out.add_row(name, *(str(of["runs_out"][level] or "later") for level in ("mid", "low", "high")))
    console.print(out)
    console.print(f"later: more than {REACH} epochs from now\n")
    _basis(made, console)


def show_back_test(made: dict[str, Any], console: Console) -> None:
    table = _table(f"Forecast of {made['run']} from its epochs to {made['epochs_seen'][-1]}, and what came (90 % "
                   "intervals)", "epoch", "prompts", "came", "", "informative", "came", "")
    for row in made["epochs"]:
        cells = []
        for key, form in (("prompts", _count), ("informative_share", _percent)):
            value = row[key]
            cells += [_range(value, form), form(value["actual"]), "" if value["within"] else "outside"]
        table.add_row(str(row["epoch"]), *cells)
    console.print(table, "")
    _basis(made, console)


def show_comparison(made: dict[str, Any], console: Console) -> None:
    scenario, of = made["scenario"], made["of"]
    console.print("Scenario: " + ", ".join(f"{key}={value:,}" for key, value in scenario.items()), highlight=False)
    parts = list(next(iter(of.values()))["accuracy"])
    table = _table("Expected accuracy over all prompts, at equal rollouts (part of the budget) and at equal steps",
                   "sampler", *("start" if part == "0" else f"{float(part):.0%}" for part in parts),
                   f"{made['equal_steps']:,} steps", "rollouts to plain's end")
    for name, run in of.items():
        table.add_row(name, *(_share(run["accuracy"][part]) for part in parts), _share(run["accuracy_at_equal_steps"]),
                      _count(run["rollouts_to_plain"]))
    console.print("", table, "", _spent(of), "")
    for line in made["assumptions"]:
        console.print(f"- {line}", highlight=False)


def _spent(of: dict[str, Any]) -> Table:
    table = _table("Rollouts, and what they were spent on", "sampler", "steps", "rollouts",
                   "not trained on", "informative", "epochs", "prompts, %")
    for name, run in of.items():
        sizes = [f"{100 * epoch['seen'] / run['epochs'][0]['seen']:.0f}" for epoch in run["epochs"][:3]]
        table.add_row(name, _count(run["steps"]), _count(run["rollouts"]), _count(run["rollouts_not_trained_on"]),
                      _share(run["informative_share"]), str(len(run["epochs"])), " ".join(sizes))
    return table


def _basis(made: dict[str, Any], console: Console) -> None:
    epochs, nearest = made["epochs_seen"], made["next_growth"]
    console.print(f"From {made['prompts']:,} prompts x {made['samples']} samples in {len(epochs)} closed "
                  f"epoch{'s' * (len(epochs) > 1)}, now stage {made['stage']}, sampler {made['sampler']}, "
                  f"{made['prompts_per_step']} prompts a step.", highlight=False)
    if made["growth"]:
        console.print("Growth in log-odds: " + ", ".join(
            f"epoch {g['from']} to {g['to']}: {g['log_odds']:+.2f} +- {g['error']:.2f}" for g in made["growth"]) +
            f"; of single prompts +- {made['spread']:.2f}.", highlight=False)
    console.print(f"To the next epoch: {nearest['log_odds']:+.2f} +- {nearest['error']:.2f}.", highlight=False)
    for line in made["assumptions"]:
        console.print(f"- {line}", highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        name = column == "sampler"
        table.add_column(column, justify="left" if name else "right",
                         min_width=11 if name else max(map(len, column.split()), default=0))
    return table


def _range(value: dict[str, Any], form: Callable[[Any], str]) -> str:
    if value["low"] == value["high"]:
        return form(value["mid"])
    return f"{form(value['mid'])} ({form(value['low'])}-{form(value['high'])})"


def _count(value: float | None) -> str:
    """In thousands from a hundred thousand on."""
    return "-" if value is None else f"{value / 1e3:,.0f}k" if value >= 1e5 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _cost(value: float | None) -> str:
    return "∞" if value is None else f"{value:,.0f}"
