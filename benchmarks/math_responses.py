"""Maths responses with known verdicts, for `bench_graders`.

"numbers" never need algebra; "mixed" is what MATH's answers look like: half numbers, the rest expressions, tuples,
sets, intervals and matrices; "algebra" is its expressions alone, each different, so that no cache helps. A third of the
answers is wrong.
"""

from __future__ import annotations

import random

from srpo.data.schema import Problem
from srpo.rewards import Response

KINDS = ("numbers", "mixed", "algebra")
THINKING = "<think>" + "We add the two sides and see that $x^2 + 1 \\ge 2x$, so the sum is bounded. " * 40 + "</think>"


def responses(kind: str, count: int, seed: int) -> list[tuple[Response, float]]:
    """`count` responses of some 3,000 characters, each with its right grade."""
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
