"""Maths responses that the graders judge a second.

    python -m benchmarks.bench_math_grader --out new.json

Responses of some 3,000 characters go through the worker processes that a run has. "numbers" never need algebra; "mixed"
is what MATH's answers look like: half numbers, the rest expressions, tuples, sets, intervals and matrices, a third of
the answers wrong; "algebra" is its expressions alone, each different, so that no cache helps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

from srpo.config import Reward
from srpo.data.schema import Problem
from srpo.rewards import Graders, Response

THINKING = "<think>" + "We add the two sides and see that $x^2 + 1 \\ge 2x$, so the sum is bounded. " * 40 + "</think>"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    parser.add_argument("--responses", type=int, default=4096, help="in a timed call (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="calls, of which the median counts (%(default)s)")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {"workers": options.workers, "load": os.getloadavg()[0], "rates": {}}
    print(f"{options.workers} workers, load average {document['load']:.1f}")
    graders = Graders(Reward(style="boxed"), 4096, options.workers)
    try:
        for kind in ("numbers", "mixed", "algebra"):
            rates = [rate(graders, responses(kind, options.responses, seed)) for seed in range(options.rounds)]
            document["rates"][kind] = {"median": statistics.median(rates), "all": rates}
            print(f"{kind:8} {statistics.median(rates):6.0f} responses a second ({min(rates):.0f} to {max(rates):.0f})",
                  flush=True)
    finally:
        graders.close()
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return document


def rate(graders: Graders, items: list[tuple[Response, float]]) -> float:
    """Responses a second of one call; the verdicts must be right."""
    started = time.perf_counter()
    graded = graders.grade([response for response, _ in items])
    seconds = time.perf_counter() - started
    wrong = [(r.text[-80:], r.problem.answer) for (r, correct), g in zip(items, graded, strict=True)
             if g.correct != correct]
    assert not wrong, wrong[0]
    return len(items) / seconds


def responses(kind: str, count: int, seed: int) -> list[tuple[Response, float]]:
    rng = random.Random(seed)
    items = []
    for i in range(count):
        make = number if kind == "numbers" or kind == "mixed" and i % 2 else ALGEBRA[rng.randrange(len(ALGEBRA))]
        reference, given, wrong = make(rng)
        correct = i % 3 != 0
        text = f"{THINKING}\nThe answer is $\\boxed{{{given if correct else wrong}}}$."
        items.append((Response(Problem(str(i), "math", "What is it?", answer=reference), text, 800, False),
                      float(correct)))
    return items


def number(rng: random.Random) -> tuple[str, str, str]:
    n = rng.randrange(2, 99_999)
    return rng.choice([(f"{n}", f"{n:,}", f"{n + 1}"), (f"\\frac{{{n}}}{{7}}", f"{n}/7", f"\\frac{{{n + 1}}}{{7}}"),
                       (f"{n / 100}", f"{n / 100:.3f}", f"{n / 10}"), (f"\\${n}", f"{n}.00", f"\\$0.{n}"),
                       (f"{n}^\\circ", f"{n}", f"{n}0"), (f"{n}\\text{{ cm}}", f"{n}\\text{{ cm}}", f"{n} m")])


def polynomial(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(2, 999), rng.randrange(2, 999)
    return f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"(x+{a})(x-{b})"


def radical(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(2, 999), rng.choice([2, 3, 5, 7, 11])
    return f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"\\sqrt{{{a * b}}}"


def pair(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(2, 999), rng.randrange(1000, 1999)
    return f"\\left( {a}, \\frac{{\\pi}}{{{b}}} \\right)", f"({a}, \\pi/{b})", f"(\\pi/{b}, {a})"


def listed(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(2, 99), rng.choice([2, 3, 5, 7, 11])
    return f"{a} \\pm \\sqrt{{{b}}}", f"{a}-\\sqrt{{{b}}}, {a}+\\sqrt{{{b}}}", f"{a}+\\sqrt{{{b}}}"


def interval(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(2, 999), rng.randrange(1000, 1999)
    return f"[{a}, {b})", f"{a} \\le x < {b}", f"[{a}, {b}]"


def matrix(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(2, 999), rng.randrange(1000, 1999)
    return (f"\\begin{{pmatrix}} {a} \\\\ -{b} \\end{{pmatrix}}", f"\\begin{{bmatrix}}{a}\\\\-{b}\\end{{bmatrix}}",
            f"\\begin{{pmatrix}} -{b} \\\\ {a} \\end{{pmatrix}}")


ALGEBRA = [polynomial, radical, pair, listed, interval, matrix]

if __name__ == "__main__":
    main()
