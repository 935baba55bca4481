"""`srpo eval` on HumanEval and MBPP: reference solutions against the empty program, graded as in an evaluation.

    SRPO_DATA=FOLDER pytest tests/public_data/test_evaluation.py

FOLDER is as for test_prepare.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srpo.config import Reward
from srpo.data.schema import Problem
from srpo.evaluation import report
from srpo.evaluation.data import DataSet, read
from srpo.evaluation.sampling import chunks, sample
from srpo.evaluation.settings import settle
from srpo.prepare.files import records
from srpo.prepare.readers import row
from srpo.rewards import Graders

DATA = Path(os.environ.get("SRPO_DATA", ""))


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    graders = Graders(Reward(style="boxed", timeout=60.0), 1000, 2)
    yield graders
    graders.close()


def evaluate(found: DataSet, responses: dict[str, str], graders: Graders, out: Path) -> list[report.Scored]:
    """The scores of one given response to each problem."""

    def generate(batches: list[list[Problem]], *_: Any, **__: Any) -> Iterator[dict[tuple[str, int], SimpleNamespace]]:
        for problems in batches:
            yield {(p.id, 0): SimpleNamespace(text=responses[p.id], tokens=1, truncated=False) for p in problems}

    settings = settle(dict.fromkeys(("template", "style")) | {"samples": 1}, None)
    (out / "samples").mkdir(parents=True)
    made = chunks([found], settings.chunk)
    sample(made, out, SimpleNamespace(generate=generate), graders, settings, lambda n: None)  # type: ignore[arg-type]
    return report.score(made, out, [1])


def solutions(found: DataSet) -> dict[str, str]:
    """Reference programs in fenced blocks, by problem."""
    (path,) = found.files
    rows = [row(record, where, "") for where, record in records(Path(path))]
    return {f"{found.name}/{r.id.removeprefix(found.name + '/')}": f"```python\n{r.solution}\n```" for r in rows}


def test_humaneval(graders: Graders, tmp_path: Path):
    (found,) = read(["humaneval"], DATA, "boxed")
    right = evaluate(found, solutions(found), graders, tmp_path / "right")
    summary = report.summarize(right, [found], seed=1)["data"]["humaneval"]
    assert summary["problems"] == 164 and summary["failed"] == 0
    assert summary["avg@1"] == summary["pass@1"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    for i, empty in enumerate(("", "```python\n```")):
        wrong = evaluate(found, dict.fromkeys(solutions(found), empty), graders, tmp_path / f"wrong{i}")
        assert report.summarize(wrong, [found], seed=1)["data"]["humaneval"]["avg@1"]["mean"] == 0.0


def test_mbpp(graders: Graders, tmp_path: Path):
    """Its test split. The tests of 367 use a class that only its solution has (docs/data.md); 123 computes for seconds,
    and a busy machine may end it."""
    (found,) = read(["mbpp"], DATA, "boxed")
    scored = evaluate(found, solutions(found), graders, tmp_path)
    wrong = {p.problem.id for p in scored if p.scores["avg@1"] < 1}
    assert len(scored) == 500 and wrong - {"mbpp/123"} == {"mbpp/367"}


def test_maths_references_are_right_as_answers(graders: Graders, tmp_path: Path):
    for i, entry in enumerate((f"math500={DATA / 'math' / 'math500.jsonl'}", "gsm8k")):
        (found,) = read([entry], DATA, "boxed")
        answers = {p.id: f"\\boxed{{{p.answer}}}" for p in found.problems}
        scored = evaluate(found, answers, graders, tmp_path / str(i))
        assert [p.problem.id for p in scored if p.scores["majority@1"] < 1] == []
