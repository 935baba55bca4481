"""Duplicates and contamination: what must be found, what must not be."""

from __future__ import annotations

import random

import pytest

from srpo.prepare import duplicates
from srpo.prepare.contamination import Benchmarks

LONG = ("A farmer walks from the village to the market in 50 minutes, carrying 12 baskets of ripe red apples, and "
        "comes back in 70 minutes with the baskets empty. How long is the farmer on the road on that day, in minutes?")


def found(*rows: tuple[str, str]) -> list[tuple[int, str, int]]:
    texts = [text for text, _ in rows]
    return list(duplicates.find(texts, [*map(duplicates.signature, texts)], [*map(duplicates.exact, texts)],
                                [answer for _, answer in rows], lambda a, b: float(a) == float(b)))


@pytest.mark.parametrize(("other", "rule"), [
    (LONG, "exact_duplicate"),
    (LONG.upper().replace(" ", "  ").replace("?", ""), "exact_duplicate"),
    (LONG.replace("ripe red", "red"), "near_duplicate"),
    (LONG.replace("the village", "her village") + " Explain.", "near_duplicate"),
    (LONG.replace("50", "60"), None),
    ("In " + LONG.replace("How long is the farmer on the road on that day, in minutes?", "How many apples?"), None),
    ("Find the area of a square of side 12.", None),
])
def test_duplicates(other: str, rule: str | None):
    assert found((LONG, "120"), ("What is 1+1?", "2"), (other, "120")) == ([(2, rule, 0)] if rule else [])


@pytest.mark.parametrize(("a", "b"), [
    ("Find $f(g(2))$.", "Find $g(f(2))$."), ("Compute $1-2$.", "Compute $1+2$."),
    ("Find $\\sin x$ of the given angle x.", "Find $\\cos x$ of the given angle x.")])
def test_a_sign_makes_another_problem(a: str, b: str):
    assert found((a, "1"), (b, "1")) == []


def test_brackets_make_another_problem():
    assert found(("What is $88 \\div 4 \\div 2$?", "11"), ("What is $88 \\div (4 \\div 2)$?", "44")) == []


def test_layout_does_not():
    assert found(("Find $\\dfrac{1}{2} \\times 3$.", "1.5"), ("Find\n\\[\\frac12 \\cdot 3.\\]", "1.5")) == []
    assert found(("Find $\\dfrac{1}{2} \\times 3$.", "1.5"), ("find \\(\\frac {1}{2} \\cdot 3\\)", "1.5")) == [
        (1, "exact_duplicate", 0)]


def test_one_question_with_two_answers_goes_altogether():
    assert sorted(found(("Q1?", "2"), ("Q2?", "5"), ("q1", "3"))) == [(0, "ambiguous", 2), (2, "ambiguous", 0)]
    assert found(("Q1?", "2"), ("q1", "2.0")) == [(1, "exact_duplicate", 0)]


def test_signatures_find_what_jaccard_calls_alike():
    rng = random.Random(0)
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(300)]
    changed = [" ".join(w if i != 30 else "other" for i, w in enumerate(t.split())) for t in texts]
    pairs = found(*((t, "") for t in texts + changed))
    assert [p for p in pairs if p[0] - 300 != p[2]] == [] and len(pairs) >= 297       # Jaccard 0.9


BENCH = Benchmarks([("b/1", LONG), ("b/2", "What is 1+1?")])


@pytest.mark.parametrize(("text", "name"), [
    (LONG, "b/1"), ("Solve this: " + LONG.lower() + " Give a number.", "b/1"), ("what is $1 + 1$", "b/2"),
    (LONG.replace("farmer", "baker"), "b/1"),
    ("A farmer walks from the village to the market in 50 minutes, carrying 12 baskets in all. How far?", None),
    ("What is 1+2?", None), ("", None)])
def test_contamination(text: str, name: str | None):
    assert BENCH.find(text) == name


def test_no_benchmarks():
    assert Benchmarks([]).find(LONG) is None
