"""group_advantage: a few numbers a sample, so that launching the kernel is all it costs."""

from __future__ import annotations

from benchmarks.harness import Bench, main
from benchmarks.inputs import Case


def cases(device: str, quick: bool) -> list[Case]:
    op = "group_advantage"
    if quick:
        return [Case(op, "fp32", 64)]
    return [Case(op, "fp32", 256), Case(op, "fp32", 4096), Case(op, "fp32", 32768),
            Case(op, "fp32", 4096, ragged=True), Case(op, "fp32", 4096, masked=0.5, ragged=True)]


BENCH = Bench("group_advantage", cases, lambda case: {"launch": 1.0},
              "launch-bound: the time of one operator on one number")

if __name__ == "__main__":
    main([BENCH], __doc__)
