r"""The maths grader: verdicts on pairs, where the answer is looked for, and hostile expressions."""

import json
import subprocess
import sys

import pytest

from srpo.errors import UserError
from srpo.rewards.math import check, equal, grade


@pytest.mark.parametrize(("given", "reference"), [
    ("42", "42"), ("+42", "42"), ("42.0", "42"), ("1,234", "1234"), ("12\\,345", "12345"), ("12{,}345", "12,345"),
    ("-7", "−7"), ("\\$5", "5"), ("\\frac{1}{2}", "0.5"), ("\\dfrac12", "\\frac{1}{2}"), ("1/2", "\\frac{1}{2}"),
    ("5\\text{ cm}", "5"), ("5", "5\\text{ cm}^2"), ("50\\%", "50\\%"), ("2\\sqrt{2}", "\\sqrt{8}"),
    ("x^2+2x+1", "(x+1)^2"), ("x=5", "5"), ("[0,1)", "[0, 1)"), ("\\{1,2\\}", "\\{2,1\\}"),
    ("(1, 2)", "(1,2)"), ("\\varnothing", "\\emptyset"), ("\\{\\}", "\\emptyset"), ("1.2e-4", "1.2\\cdot 10^{-4}"),
    ("B", "\\text{(B)}"), ("(B) seven", "B"), ("Monday", "\\text{monday}"), ("3:45", "3:45"), ("2^{10}", "1024"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"), ("\\pi/4", "\\frac{\\pi}{4}"),
])
def test_equal(given, reference):
    assert equal(given, reference)


@pytest.mark.parametrize(("given", "reference"), [
    ("41", "42"), ("42.5", "42"), ("4 2 3", "42"), ("1e-7", "2e-7"), ("0.0000001", "0"), ("0.3333", "\\frac{1}{3}"),
    ("x^2 - y = 0", "0"), ("3 or 4", "3"), ("not 3", "3"), ("maybe 3", "3"), ("A or B", "A"), ("C", "B"),
    ("3:45", "3:46"), ("(2, 1)", "(1, 2)"), ("[0,1]", "[0,1)"), ("Tuesday", "Monday"), ("0", "\\emptyset"), ("5x", "5"),
    ("-\\frac12", "\\frac12"), ("", "3"), ("\\frac{", "3"), ("})]", "3"), ("\\infty", "1"), ("x", "y"),
])
def test_not_equal(given, reference):
    assert not equal(given, reference)


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
    assert grade(response, "3").extracted == extracted


def test_unusable_references_are_data_errors():
    with pytest.raises(UserError, match="empty"):
        grade("\\boxed{3}", "$$")
    with pytest.raises(UserError, match="cannot be read as mathematics"):
        grade("\\boxed{3}", "\\frac{")


@pytest.mark.parametrize("answer", ["", "$$", "?", "\\frac{", "\\frac{1}{2"])
def test_unusable_references_are_found_before_they_are_graded(answer):
    with pytest.raises(UserError, match="answer = .*: (empty|cannot be read as mathematics)"):
        check(answer)


@pytest.mark.parametrize("answer", ["3", "\\frac{1}{2}", "\\{1, 2\\}", "[0, 1)", "blue", "(A)", "\\{\\}", "∅"])
def test_usable_references_pass_the_check(answer):
    check(answer)


HOSTILE = [
    "9^{9^{9^9}}", "9^9^9^9^9", "(10^8)!", "100000!", "\\binom{1000000}{500000}", "2^{10000000}",
    "\\sum_{i=1}^{10^9} i", "\\int_0^1 e^{x^2} dx", "9" * 299, "{" * 150 + "}" * 150, "(" * 299, "\\frac{" * 49,
    "1^" * 149,
    "\\sqrt{" * 40 + "2" + "}" * 40, "(" * 14 + "1" + ")" * 14, "\\boxed{" * 40, "\\text{" * 50, "+-" * 140,
    "10^{-99999999}", "0.\\overline{3}", "\x00", "\\",
]


def test_hostile_answers_are_wrong_and_quick():
    """In a process with an alarm: an expression that hangs fails the test instead of stopping the suite."""
    code = ("import json, signal, sys\nfrom srpo.rewards.math import equal\nequal('x+1', '1+x')\n"
            "for text in json.loads(sys.argv[1]):\n"
            "    signal.alarm(20)\n    print(ascii(text), flush=True)\n    assert not equal(text, '7')")
    done = subprocess.run([sys.executable, "-c", code, json.dumps(HOSTILE)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1]}: {done.stderr}"
    assert len(done.stdout.splitlines()) == len(HOSTILE)


def test_extraction_is_linear():
    for text in ("\\boxed{" * 20_000, "\\boxed{" + "{" * 100_000, "<answer>" * 2_000, "</think>" * 20_000,
                 "\\boxed{1} " * 5_000):
        grade(text, "3")


def test_toy_answers_never_load_sympy():
    code = ("import sys; from srpo.rewards.math import grade;"
            "assert grade('</think><answer>12</answer>', '12').correct and not grade('\\\\boxed{13}', '12').correct;"
            "sys.exit('sympy' in sys.modules or 'torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
