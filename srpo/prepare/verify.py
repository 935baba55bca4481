"""Does the ground truth hold? Maths answers against the grader and the worked solution, programs against their tests.

As a program, `python -m srpo.prepare.verify CHANNEL STORE SETTINGS`, it is the killable process in which
srpo.rewards.pool compares answers: computer algebra has no deadline of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from srpo.errors import UserError
from srpo.prepare.readers import final
from srpo.prepare.rows import Row
from srpo.rewards import math
from srpo.rewards.pool import Lost, Pool
from srpo.rewards.wire import serve
from srpo.rewards.worker import MATH_MEMORY, bounded_memory
from srpo.sandbox import Limits, judge_many
from srpo.sandbox.confine import die_with_parent

TIMEOUT = 10.0
"""Seconds for one answer: as long as a grader has in training."""
LIMITS = Limits(wall=30.0, cpu=5)
"""Of a program. Processor time decides, so that a busy machine does not drop a slow solution that an idle one keeps."""


def answer_fault(answer: str, solution: str | None) -> tuple[str, str] | None:
    """(rule, detail) of a reference answer that cannot be graded against, or that its own solution contradicts."""
    try:
        if math.judge(f"\\boxed{{{answer}}}", answer).correct != 1:
            return "answer_fails", "the grader does not find it equal to itself"
        if math.equal("1", answer) and math.equal("0", answer):
            return "answer_fails", "the grader accepts anything"
        reached = final(solution) if solution else None
        if reached and not math.equal(reached, answer):
            return "solution_disagrees", f"the solution ends in {reached[:80]!r}"
    except UserError as e:
        return "answer_fails", str(e)
    return None


class Answers:
    """Worker processes that compare answers; each comparison has TIMEOUT seconds."""

    def __init__(self, workers: int):
        self._pool = Pool("srpo.prepare.verify", {}, workers, TIMEOUT)

    def faults(self, rows: Sequence[Row]) -> list[tuple[str, str] | None]:
        replies = self._pool.map([{"answer": r.answer, "solution": r.solution} for r in rows])
        return [("answer_fails", r.why) if isinstance(r, Lost) else tuple(r["fault"]) if r["fault"] else None
                for r in replies]

    def agree(self, a: str, b: str) -> bool:
        reply, = self._pool.map([{"pair": [a, b]}])
        return not isinstance(reply, Lost) and bool(reply["equal"])

    def close(self) -> None:
        self._pool.close()


def program_faults(rows: Sequence[Row], workers: int) -> list[tuple[str, str] | None]:
    """(rule, detail) of each problem whose solution fails its tests, or whose tests a program that does nothing passes.
    A problem without a solution is taken on trust but for the latter."""
    items = [(p, r.tests or {}) for r in rows for p in (r.solution or _idle(r), _idle(r))]
    verdicts = judge_many(items, limits=LIMITS, workers=workers)
    faults: list[tuple[str, str] | None] = []
    for row, solved, idle in zip(rows, verdicts[::2], verdicts[1::2], strict=True):
        if row.solution and solved.passed < solved.total:
            faults.append(("solution_fails", f"{solved.passed} of {solved.total}: {solved.reason}"[:200]))
        elif idle.passed == idle.total:
            faults.append(("vacuous_tests", "a program that does nothing passes"))
        else:
            faults.append(None)
    return faults


def _idle(row: Row) -> str:
    tests = row.tests or {}
    return "" if tests["kind"] == "stdio" else f"def {tests['entry_point']}(*args, **kwargs):\n    return None\n"


def main() -> None:
    die_with_parent()
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]), answer)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    with bounded_memory(MATH_MEMORY):
        if "pair" not in request:
            return {"fault": answer_fault(request["answer"], request["solution"])}
        try:
            return {"equal": math.equal(*request["pair"])}
        except UserError:
            return {"equal": False}


if __name__ == "__main__":
    main()
