"""The numbers in the page against an independent computation from the ledger and metrics.jsonl."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import synthetic

from srpo.analysis.frequency import frequencies
from srpo.analysis.patterns import Patterns
from srpo.control.ledger import Ledger, RolloutRow
from srpo.report.collect import collect
from srpo.report.page import page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("runs") / "srpo")


@pytest.fixture(scope="module")
def shown(run: Path) -> dict[str, Any]:
    return json.loads(embedded(page(collect([run]))))["runs"][0]


def embedded(html: str) -> str:
    (text,) = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', html, re.DOTALL)
    return text


def rollouts(run: Path) -> list[sqlite3.Row]:
    db = sqlite3.connect(run / "ledger.sqlite")
    db.row_factory = sqlite3.Row
    return db.execute("SELECT * FROM rollouts").fetchall()


def by_step(run: Path, domain: str, figure: Callable[[list[sqlite3.Row]], float]) -> list[float | None]:
    """A figure of each step's rows of a domain; None where it has none."""
    rows = rollouts(run)
    steps: dict[int, list[sqlite3.Row]] = {step: [] for step in sorted({r["step"] for r in rows})}
    for row in rows:
        if domain in ("all", row["domain"]):
            steps[row["step"]].append(row)
    return [figure(part) if part else None for part in steps.values()]


def groups(rows: list[sqlite3.Row]) -> list[list[sqlite3.Row]]:
    found: dict[str, list[sqlite3.Row]] = {}
    for row in rows:
        found.setdefault(row["prompt_id"], []).append(row)
    return list(found.values())


def identical(rows: list[sqlite3.Row], correct: float | None = None) -> float:
    return fmean(len({r["reward"] for r in g}) == 1 and (correct is None or all(r["correct"] == correct for r in g))
                 for g in groups(rows))


def varied(rows: list[sqlite3.Row]) -> int:
    return sum(len({r["reward"] for r in g}) > 1 for g in groups(rows))


@pytest.mark.parametrize("domain", ["all", "math", "code"])
@pytest.mark.parametrize(("name", "figure"), [
    ("reward", lambda rows: fmean(r["reward"] for r in rows)),
    ("length", lambda rows: fmean(r["tokens"] for r in rows)),
    ("truncated", lambda rows: fmean(r["truncated"] for r in rows)),
    ("rollouts", len),
    ("identical", identical),
    ("identical_correct", lambda rows: identical(rows, 1.0)),
    ("identical_wrong", lambda rows: identical(rows, 0.0)),
    ("advantage", varied),
    ("advantage_rate", lambda rows: 1000 * varied(rows) / len(rows)),
])
def test_curves_are_the_ledgers(run, shown, name, figure, domain):
    expected = by_step(run, domain, figure)
    values = shown["columns"][f"{name}/{domain}"]
    assert len(values) == synthetic.Shape().steps and any(by_step(run, "all", figure))
    assert [v is None for v in values] == [e is None for e in expected]
    assert [v for v in values if v is not None] == pytest.approx([e for e in expected if e is not None], rel=1e-5)


def test_metrics_are_those_of_the_file(run, shown):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("reward/mean", "groups/zero_advantage", "policy/entropy", "time/update", "sampler/pool"):
        assert shown["columns"][f"metrics:{name}"] == pytest.approx([m[name] for m in lines[1:]], rel=1e-5)
    # where every group was used, both sources say the same
    assert shown["columns"]["metrics:reward/mean"] == pytest.approx(shown["columns"]["reward/all"], rel=1e-5)
    assert [point[0] for point in shown["evaluations"]["eval/math"]] == [0, 20, 40, 60]
    assert shown["evaluations"]["eval/math"][0][3] == lines[0]["eval/math"]


def test_sums(run, shown):
    rows = rollouts(run)
    assert shown["columns"]["rollouts"][-1] == len(rows) == shown["totals"]["rollouts"]
    assert shown["columns"]["advantage"][-1] == sum(by_step(run, "all", varied))
    assert shown["totals"]["tokens"] == sum(r["tokens"] for r in rows)
    assert shown["totals"]["prompts"] == len({r["prompt_id"] for r in rows})
    seconds = [json.loads(line).get("time/step", 0) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert shown["columns"]["hours"][-1] == pytest.approx(sum(seconds) / 3600, rel=1e-5)


def test_epochs_and_flow(run, shown):
    db = sqlite3.connect(run / "ledger.sqlite")
    closed = db.execute("SELECT epoch, prompts, kept, dropped FROM epochs ORDER BY epoch").fetchall()
    assert [(e["epoch"], e["prompts"], e["kept"], e["dropped"]) for e in shown["epochs"]] == closed
    assert sum(e["dropped"] for e in shown["epochs"]) > 0

    def state(rows: list[sqlite3.Row] | None) -> int:
        if not rows:
            return 4
        rate = fmean(r["correct"] for r in rows)
        return 0 if rate == 0 else 3 if rate == 1 else 1 if rate < 0.5 else 2

    epochs = {e: {} for e, *_ in closed}
    for row in rollouts(run):
        if row["epoch"] in epochs:
            epochs[row["epoch"]].setdefault(row["prompt_id"], []).append(row)
    expected = [Counter((state(a.get(p)), state(b.get(p))) for p in a.keys() | b.keys())
                for a, b in pairwise(epochs.values())]
    assert shown["flow"]["epochs"] == list(epochs)
    found = [{(i, j): n for i, row in enumerate(matrix) for j, n in enumerate(row) if n}
             for matrix in shown["flow"]["flow"]]
    assert found == expected and any(i == 4 for moves in found for i, _ in moves)


def test_stages_and_events(shown):
    assert shown["stages"] == [{"name": "math", "first": 1, "last": 24}, {"name": "both", "first": 25, "last": 60}]
    assert [24, "stage", "math -> both: plateau after 24 steps"] in shown["events"]


def test_patterns_are_those_of_the_analysis(run, shown):
    rows = [r for r in frequencies(run, Patterns.load()) if r.pattern == "recheck" and r.domain == "math"]
    table = shown["patterns"]["recheck"]["domains"]["math"]
    assert table["step"] == [r.step for r in rows] and any(table["matching"])
    assert table["share"] == pytest.approx([r.matching / r.responses for r in rows], rel=1e-5)
    with_ = [r.tokens_with for r in rows if r.matching]
    assert [t for t in table["tokens_with"] if t is not None] == pytest.approx(with_, rel=1e-5)
    whole = shown["patterns"]["recheck"]["domains"]["all"]
    assert sum(whole["responses"]) == sum(sum(shown["patterns"]["recheck"]["domains"][d]["responses"])
                                          for d in ("math", "code"))


def test_configuration_is_flat(shown):
    assert shown["config"]["stages.1.domains"] == "math, code" and shown["config"]["resample.sampler"] == "history"


def test_groups_that_an_update_went_without_count_as_spent(tmp_path):
    (tmp_path / "run").mkdir()
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    rows = [RolloutRow(1, 1, "s", prompt, i, "math", correct, correct, 10, False)
            for prompt in ("a", "b", "c") for i, correct in enumerate((0.0, 1.0, float(prompt == "c")))]
    ledger.append(rows, unused={"b"})
    ledger.close()
    (found,) = collect([tmp_path / "run"])["runs"]
    assert found["columns"]["rollouts"] == [9] and found["columns"]["advantage"] == [2]
    assert found["columns"]["advantage_rate/all"] == [pytest.approx(1000 * 2 / 9, rel=1e-5)]
    assert found["columns"]["reward/all"] == [pytest.approx(4 / 9, rel=1e-5)]
