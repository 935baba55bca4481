"""Sampling and grading, a chunk of problems at a time; each chunk is a Parquet file, written whole or not at all.

A chunk is made of neighbouring problems of one data set and is one batch of the engine, so that its responses depend
on the settings and its problems, not on which chunks were made before a kill or by which rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from srpo.config import Style
from srpo.data.schema import Problem
from srpo.evaluation.data import DataSet
from srpo.evaluation.settings import Settings
from srpo.evaluation.votes import group_answers
from srpo.files import write_table
from srpo.rewards import Graded, Graders, Response
from srpo.rewards import code as code_reward
from srpo.rewards import math as math_reward
from srpo.rewards.extract import as_graded

if TYPE_CHECKING:
    from srpo.rollout.standalone import Completion, StandaloneEngine

SAMPLES = pa.schema([
    ("data", pa.string()), ("id", pa.string()), ("domain", pa.string()), ("sample", pa.int32()),
    ("response", pa.string()), ("extracted", pa.string()), ("answer_group", pa.int32()), ("correct", pa.float64()),
    ("reason", pa.string()), ("failed", pa.bool_()), ("tokens", pa.int32()), ("truncated", pa.bool_())])
"""A row a sample. `extracted` is the answer or program that was graded; `answer_group` numbers a maths problem's
different answers; `failed`: the grader hung or died, and `reason` says so."""


@dataclass(frozen=True)
class Chunk:
    data: str
    number: int
    problems: list[Problem]

    def file(self, out: Path) -> Path:
        return out / "samples" / f"{self.data}-{self.number:06}.parquet"


def chunks(sets: Sequence[DataSet], size: int) -> list[Chunk]:
    return [Chunk(s.name, i // size, s.problems[i : i + size]) for s in sets for i in range(0, len(s.problems), size)]


def sample(share: Sequence[Chunk], out: Path, engine: StandaloneEngine, graders: Graders | None, settings: Settings,
           advance: Callable[[int], None]) -> None:
    """Make chunks and write each when it is complete; `advance` hears of every so many finished responses. Graders are
    with one rank of a replica; the others only sample."""
    problems = {p.id: p for chunk in share for p in chunk.problems}
    place = {p.id: n for n, chunk in enumerate(share) for p in chunk.problems}
    missing = [len(chunk.problems) * settings.samples for chunk in share]
    responses: dict[tuple[str, int], Completion] = {}
    graded: dict[tuple[str, int], Graded] = {}
    for finished in engine.generate([chunk.problems for chunk in share], settings.samples, settings.temperature,
                                    top_p=settings.top_p, seed=settings.seed):
        advance(len(finished))
        if not graders:
            continue
        responses |= finished
        graders.submit({key: Response(problems[key[0]], c.text, c.tokens, c.truncated) for key, c in finished.items()})
        for i, _ in finished:
            missing[place[i]] -= 1
            if not missing[place[i]]:
                graded |= graders.collect()
                chunk = share[place[i]]
                rows = _rows(chunk, responses, graded, graders, settings)
                write_table(chunk.file(out), pa.Table.from_pylist(rows, SAMPLES))


def _rows(chunk: Chunk, responses: dict[tuple[str, int], Completion], graded: dict[tuple[str, int], Graded],
          graders: Graders, settings: Settings) -> list[dict[str, Any]]:
    """Of the chunk's responses and grades, which are taken away."""
    rows: list[dict[str, Any]] = []
    for p in chunk.problems:
        for j in range(settings.samples):
            c, g = responses.pop((p.id, j)), graded.pop((p.id, j))
            rows.append({
                "data": chunk.data, "id": p.id.removeprefix(f"{chunk.data}/"), "domain": p.domain, "sample": j,
                "response": c.text, "extracted": extracted(p, c.text, settings.style), "correct": g.correct,
                "reason": g.reason, "failed": g.failed, "tokens": c.tokens, "truncated": c.truncated})
    answers: dict[str, list[str | None]] = {}
    maths = [row for row in rows if row["domain"] == "math"]
    for row in maths:
        answers.setdefault(row["id"], []).append(None if row["failed"] else row["extracted"])
    groups = group_answers(answers, graders)
    for row in maths:
        row["answer_group"] = groups[row["id"]][row["sample"]]
    return rows


def extracted(problem: Problem, response: str, style: Style) -> str | None:
    """What the grader looks at (srpo/rewards/worker.py); None also where it is a user's function, and knows itself."""
    if problem.domain == "other":
        return None
    return (math_reward if problem.domain == "math" else code_reward).extract(as_graded(response, style))
