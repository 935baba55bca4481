"""From the samples on disk to figures: a row a problem, means over problems with their intervals, a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.evaluation.data import DataSet
from srpo.evaluation.metrics import intervals, majority_at_k, pass_at_k
from srpo.evaluation.sampling import Chunk
from srpo.files import why, write_table
from srpo.terminal import new_table

Row = dict[str, Any]

_SINGLE = ("majority@1", "majority@2")
"""Not in the table: one voter, or two between whom a draw decides, are avg@n over again."""


@dataclass(frozen=True)
class Scored:
    """A problem's samples (columns of the Parquet files, without the texts) and what they say of it, by metric."""

    data: str
    problem: Problem
    samples: dict[str, list[Any]]
    scores: dict[str, float]


def score(chunks: Iterable[Chunk], out: Path, ks: Sequence[int]) -> list[Scored]:
    """Every problem of the finished chunks, in order. Raises UserError naming a file that is damaged."""
    columns = ["id", "answer_group", "correct", "failed", "tokens", "truncated"]
    found = []
    for chunk in chunks:
        file = chunk.file(out)
        try:
            rows = pq.read_table(file, columns=columns).to_pylist()
        except (OSError, pa.ArrowInvalid) as e:
            raise UserError(f"{file}: cannot be read: {why(e)}; delete it and repeat the command, which samples it "
                            "again") from None
        for problem, (_, group) in zip(chunk.problems, groupby(rows, lambda row: row["id"]), strict=True):
            listed = list(group)
            samples = {name: [row[name] for row in listed] for name in columns[1:]}
            found.append(Scored(chunk.data, problem, samples, _scores(problem, samples, ks)))
    return found


def _scores(problem: Problem, samples: dict[str, list[Any]], ks: Sequence[int]) -> dict[str, float]:
    correct = samples["correct"]
    n, right = len(correct), sum(c == 1 for c in correct)
    scores = {f"avg@{n}": float(np.mean(correct))} | {f"pass@{k}": pass_at_k(n, right, k) for k in ks}
    if problem.domain == "math":
        majority = majority_at_k(samples["answer_group"], correct, ks)
        scores |= {f"majority@{k}": majority[k] for k in ks}
    return scores


def summarize(scored: Sequence[Scored], sets: Sequence[DataSet], seed: int) -> dict[str, dict[str, Row]]:
    """The figures of each data set and of each domain."""
    by_data = {s.name: figures([p for p in scored if p.data == s.name], seed) for s in sets}
    domains = dict.fromkeys(p.problem.domain for p in scored)
    by_domain = {d: figures([p for p in scored if p.problem.domain == d], seed) for d in domains}
    return {"data": by_data, "domains": by_domain}


def figures(scored: Sequence[Scored], seed: int) -> Row:
    """Means over problems with 95 % intervals, majority over those of maths; lengths over all samples, in tokens."""
    estimates: dict[str, dict[str, float]] = {}
    for kind in ("", "majority"):
        some = [p for p in scored if not kind or p.problem.domain == "math"]
        names = [name for name in (some[0].scores if some else ()) if name.startswith("majority") == bool(kind)]
        values = np.array([[p.scores[name] for name in names] for p in some])
        if names:
            low, high = intervals(values, seed)
            estimates |= {name: {"mean": float(m), "low": float(a), "high": float(b)}
                          for name, m, a, b in zip(names, values.mean(0), low, high, strict=True)}

    def column(name: str) -> Any:
        return np.array([x for p in scored for x in p.samples[name]])

    tokens, correct = column("tokens"), column("correct") == 1
    silent = [group is None and not failed for p in scored if p.problem.domain == "math"  # the lost do not vote either
              for group, failed in zip(p.samples["answer_group"], p.samples["failed"], strict=True)]
    return {
        "problems": len(scored), "samples": len(scored[0].samples["correct"]), **estimates,
        "truncated": float(column("truncated").mean()), "failed": int(column("failed").sum()),
        "no_answer": float(np.mean(silent)) if silent else None,
        "tokens": {"mean": float(tokens.mean()), "median": float(np.median(tokens)), "max": int(tokens.max()),
                   "correct": float(tokens[correct].mean()) if correct.any() else None,
                   "wrong": float(tokens[~correct].mean()) if not correct.all() else None}}


def write_problems(scored: Sequence[Scored], path: Path) -> None:
    """A row a problem."""
    scores = list(dict.fromkeys(name for p in scored for name in p.scores))
    rows = [{"data": p.data, "id": p.problem.id.removeprefix(f"{p.data}/"), "domain": p.problem.domain,
             "prompt": p.problem.prompt, "reference": p.problem.answer, "samples": len(p.samples["correct"]),
             "correct": sum(c == 1 for c in p.samples["correct"]),
             "answers": len({g for g in p.samples["answer_group"] if g is not None}) or None,
             "truncated": sum(p.samples["truncated"]), "tokens": float(np.mean(p.samples["tokens"])), **p.scores}
            for p in scored]
    text, count = ("data", "id", "domain", "prompt", "reference"), ("samples", "correct", "answers", "truncated")
    schema = pa.schema([*((n, pa.string()) for n in text), *((n, pa.int32()) for n in count),
                        *((n, pa.float64()) for n in ("tokens", *scores))])
    write_table(path, pa.Table.from_pylist(rows, schema))


def table(summary: dict[str, Any], title: str) -> Table:
    """A line a figure, a column a data set; domains too where they say something else."""
    columns = dict(summary["data"])
    if len(columns) > 1 or len(summary["domains"]) > 1:
        columns |= {f"all {domain}": f for domain, f in summary["domains"].items()}
    shown = new_table(title, "", *columns, text=("",), caption="percent, with 95 % bootstrap intervals over problems")

    def line(name: str, cell: Callable[[Row], str]) -> None:
        shown.add_row(name, *map(cell, columns.values()))

    line("problems", lambda f: f"{f['problems']:,}")
    shown.add_section()
    names = sorted(dict.fromkeys(n for f in columns.values() for n in f if "@" in n and n not in _SINGLE),
                   key=lambda n: ("avg", "pass", "majority").index(n.split("@")[0]))
    for name in names:
        shown.add_row(name, *(_estimate(f.get(name)) for f in columns.values()), end_section=name == names[-1])
    line("truncated", lambda f: f"{100 * f['truncated']:.1f}")
    line("no answer", lambda f: "" if f["no_answer"] is None else f"{100 * f['no_answer']:.1f}")
    line("tokens, mean", lambda f: f"{f['tokens']['mean']:,.0f}")
    line("tokens, median", lambda f: f"{f['tokens']['median']:,.0f}")
    line("tokens, longest", lambda f: f"{f['tokens']['max']:,}")
    if any(f["failed"] for f in columns.values()):
        line("graders failed", lambda f: f"{f['failed']:,}")
    return shown


def _estimate(e: dict[str, float] | None) -> str:
    if e is None:
        return ""
    mean, low, high = ("100" if x == 1 else f"{100 * x:.1f}" for x in (e["mean"], e["low"], e["high"]))
    return f"{mean} [{low}, {high}]"
