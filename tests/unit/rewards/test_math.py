r"""The maths grader: verdicts on pairs, where the answer is looked for, and hostile expressions."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from threading import Thread

import hostile_answers
import pytest

from srpo.config import Reward
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.rewards import Graders, Response, math
from srpo.rewards.extract import Grade
from srpo.rewards.math import Unreadable, check, equal, grade, judge, value

PAIRS = [line.split("\t") for line in (Path(__file__).parent / "pairs.tsv").read_text().splitlines() if line[:1] != "#"]


@pytest.mark.parametrize(("verdict", "given", "reference"), [row[:3] for row in PAIRS])
def test_pairs(verdict, given, reference):
    assert verdict in ("equal", "different", "reject")
    assert equal(given, reference) is (verdict == "equal")


def test_only_answers_of_near_values_are_equal():
    """Whoever groups answers compares no others."""
    compared = 0
    for given, reference in ((a, b) for _, a, _, *_ in PAIRS for _, _, b, *_ in PAIRS[::7]):
        x, y = value(given), value(reference)
        if x is not None and y is not None and y not in (x, 100 * x, x / 100):
            compared += 1
            assert not equal(given, reference), (given, reference)
    assert compared > 1000


@pytest.mark.parametrize(("answer", "number"), [
    ("-1{,}234.50", Fraction(-12345, 10)), ("x = \\frac12", Fraction(1, 2)), ("$3$ million", Fraction(3_000_000)),
    ("5\\text{ cm}", Fraction(5)), ("50\\%", Fraction(50)), ("2+3", None), ("\\sqrt{4}", None), ("B", None),
    ("9" * 101, None),
])
def test_value(answer, number):
    assert value(answer) == number


def test_the_table_names_every_false_reject_and_what_others_get_wrong():
    assert sum(row[0] != "reject" for row in PAIRS) >= 150
    assert all(len(row) == 4 and row[3] for row in PAIRS if row[0] == "reject")
    assert sum(row[-1].endswith("math-verify accepts") for row in PAIRS) > 20


@pytest.mark.parametrize("reference", sorted({row[2] for row in PAIRS}))
def test_a_reference_equals_itself_however_it_is_wrapped(reference):
    for given in (reference, f" {reference} ", f"${reference}$", f"\\({reference}\\)"):
        assert judge(f"so it is $\\boxed{{{given}}}$.", reference).correct


def test_infinity_equals_itself():
    assert equal("+\\infty", "\\infty") and not equal("-\\infty", "\\infty")


@pytest.mark.parametrize(("response", "extracted"), [
    ("so \\boxed{3}", "3"),
    ("\\boxed{2} then \\boxed{3}", "3"),
    ("<think>\\boxed{9}</think> it is \\boxed{3}", "3"),
    ("\\boxed{9}</think><answer>3</answer>", "3"),
    ("</think><answer>It is \\boxed{\\frac{1}{2}}.</answer>", "\\frac{1}{2}"),
    ("\\boxed{\\boxed{3}}", "3"),
    ("\\fbox{3}", "3"),
    ("<think>\\boxed{3}", None),                              # still thinking
    ("<think>\\boxed{3}</think> so three", None),             # only while thinking
    ("the answer is 3", None),
    ("\\boxed{2}, \\boxed{3}", None),                         # hedging
    ("\\boxed{2} \\text{ or } \\boxed{3}", None),
    ("\\boxed{3} and \\boxed{3.}", "3."),
    ("\\boxed{3", None), ("\\boxed{}", None), ("\\boxed{" + "1" * 301 + "}", None), ("<answer> </answer>", None),
    ("", None),
])
def test_where_the_answer_is(response, extracted):
    assert judge(response, "3").extracted == extracted


def test_unusable_references_are_data_errors():
    with pytest.raises(UserError, match="empty"):
        judge("\\boxed{3}", "$$")
    with pytest.raises(UserError, match="cannot be read as mathematics"):
        judge("\\boxed{3}", "\\frac{")


@pytest.mark.parametrize("reference", ["AB \\parallel CD", "1\\text{ hour }30\\text{ minutes}",
                                       "\\forall x > 0, f(x) = x"])
def test_a_reference_beyond_algebra_is_matched_by_its_text_and_stops_no_run(reference):
    assert judge(f"\\boxed{{{reference} }}", reference).correct
    assert not judge("\\boxed{3 = x}", reference).correct
    with pytest.raises(Unreadable, match="cannot be read as mathematics"):
        equal("3 = x", reference)                             # `srpo prepare` drops it


@pytest.mark.parametrize("answer", ["", "$$", "?", "\\frac{", "\\frac{1}{2"])
def test_unusable_references_are_found_before_they_are_graded(answer):
    with pytest.raises(UserError, match="answer = .*: (empty|cannot be read as mathematics)"):
        check(answer)


@pytest.mark.parametrize("answer", ["3", "\\frac{1}{2}", "\\{1, 2\\}", "[0, 1)", "blue", "(A)", "\\{\\}", "∅"])
def test_usable_references_pass_the_check(answer):
    check(answer)


HOSTILE = [
    "9^{9^{9^9}}", "9^9^9^9^9", "(10^8)!", "100000!", "\\binom{1000000}{500000}", "2^{10000000}", "((9^{999})^{999})^0",
    "\\sum_{i=1}^{10^9} i", "\\int_0^1 e^{x^2} dx", "9" * 299, "{" * 150 + "}" * 150, "(" * 299, "\\frac{" * 49,
    "1^" * 149, "\\sqrt{" * 40 + "2" + "}" * 40, "(" * 14 + "1" + ")" * 14, "\\boxed{" * 40, "\\text{" * 50,
    "+-" * 140, "10^{-99999999}", "0.\\overline{3}", "\x00", "\\", "1," * 150, "(1+" * 12 + "x" + ")" * 12 + "^{999}",
]


@pytest.mark.parametrize(("count", "seed"), [(110, 1), pytest.param(1100, 2, marks=pytest.mark.slow)])
def test_hostile_answers_are_wrong_and_cost_at_most_their_timeout(count, seed):
    """In the workers that a run has: one that hangs is killed, and what follows it is graded."""
    graders = Graders(Reward(style="boxed", timeout=5.0), 100, 2)
    pairs = [*((text, "7") for text in HOSTILE), *hostile_answers.answers(count, seed)]
    responses = []
    for text, reference in pairs:
        for given in (text, reference):
            problem = Problem(f"{len(responses)}", "math", "What is it?", answer=reference)
            responses.append(Response(problem, f"<answer>{given}</answer>", 1, False))
    try:
        graded = graders.grade(responses)
    finally:
        graders.close()
    assert [(g.correct, g.failed) for g in graded[1::2]] == [(1.0, False)] * len(pairs)
    assert [pair for pair, g in zip(pairs, graded[::2], strict=True) if g.correct] == []
    assert sum(g.failed for g in graded) <= len(pairs) // 50, "the bounds that are checked before parsing are in force"


def test_the_grader_at_hand_outlives_its_thread_and_what_hangs(monkeypatch):
    monkeypatch.setattr(math, "TIMEOUT", 1.0)
    math._warm.cache_clear()
    thread = Thread(target=lambda: grade("\\boxed{1}", "1"))
    thread.start()
    thread.join()                                             # and with it goes the worker that it started
    assert grade("\\boxed{\\frac12}", "0.5") == Grade(1.0, "\\frac12", "correct")
    assert grade("\\boxed{3}", "4") == Grade(0.0, "3", "wrong answer")
    hangs = "\\lfloor (1+\\sqrt2)^{9999} \\rfloor"
    assert grade(f"\\boxed{{{hangs}}}", "\\sqrt7") == Grade(0.0, None, "no answer within 1 s")
    assert grade("\\boxed{3}", "3").correct
    with pytest.raises(UserError, match="empty"):
        grade("\\boxed{3}", "$$")


def test_extraction_is_linear():
    for text in ("\\boxed{" * 20_000, "\\boxed{" + "{" * 100_000, "<answer>" * 2_000, "</think>" * 20_000,
                 "\\boxed{1} " * 5_000):
        judge(text, "3")


def test_toy_answers_never_load_sympy():
    code = ("import sys; from srpo.rewards.math import judge;"
            "assert judge('</think><answer>12</answer>', '12').correct and not judge('\\\\boxed{13}', '12').correct;"
            "sys.exit('sympy' in sys.modules or 'torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
