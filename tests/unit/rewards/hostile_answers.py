r"""Answers made to hang, crash or fool a maths grader, from a seed: towers, factorials, huge exponents and binomials,
nested roots, long strings, deep braces, Unicode, noise, and whatever else makes sympy evaluate what it should not."""

from __future__ import annotations

import random
import re

REFERENCES = ["7", "\\sqrt{7}+x", "(1, 7)", "\\{1, 7\\}", "[1, 7)", "\\frac{7}{3}", "x = 7y"]


def answers(count: int, seed: int) -> list[tuple[str, str]]:
    """(answer, reference) pairs; none of the answers is right."""
    rng = random.Random(seed)
    return [(KINDS[i % len(KINDS)](rng), rng.choice(REFERENCES)) for i in range(count)]


def _digits(rng: random.Random, most: int) -> str:
    return "9" + "".join(rng.choices("0123456789", k=rng.randrange(most)))


def _tower(rng: random.Random) -> str:
    height = rng.randrange(2, 12)
    style = rng.choice(["^{", "^(", "**(", "^{("])
    return "9" + "".join(style + _digits(rng, 4) for _ in range(height)) + "})"[::-1][:len(style) - 1] * height


def _powers(rng: random.Random) -> str:
    s = "9^{9999}"
    for _ in range(rng.randrange(1, 8)):
        s = rng.choice(["({})^{{9999}}", "({})^{{ 9999 }}", "\\left({}\\right)^{{9999}}"]).format(s)
    return s


def _factorial(rng: random.Random) -> str:
    n = rng.choice([_digits(rng, 9), "10^8", "(10^{9})", "(9!)", "((5!)!)", "99^{99}", "9999"])
    return n + rng.choice(["!", " !", "!!", ")!", "!!!", "! \\cdot 9999!"])


def _huge(rng: random.Random) -> str:
    return rng.choice([f"2^{{{_digits(rng, 30)}}}", f"x^{{{_digits(rng, 30)}}}", f"10^{{-{_digits(rng, 12)}}}",
                       f"{_digits(rng, 9)}e{_digits(rng, 9)}", f"(x+1)^{{{_digits(rng, 4)}}}",
                       f"(x+y+z)^{{{_digits(rng, 4)}}} = 0", f"\\sqrt[{_digits(rng, 9)}]{{{_digits(rng, 250)}}}",
                       f"e^{{{_digits(rng, 30)}}}", f"\\sin({_digits(rng, 250)})", f"\\log {_digits(rng, 250)}"])


def _combinatorial(rng: random.Random) -> str:
    n, k = _digits(rng, 8), _digits(rng, 7)
    return rng.choice([f"\\binom{{{n}}}{{{k}}}", f"{{{n} \\choose {k}}}", "\\binom{9999}{4999}^{9999}",
                       f"\\prod_{{i=1}}^{{{n}}} i", f"\\sum_{{i=1}}^{{{n}}} \\frac{{1}}{{i}}",
                       f"\\lim_{{x \\to 0}} \\frac{{\\sin x^{{{k}}}}}{{x}}", "\\int_0^1 e^{\\sin(x^{x})} dx",
                       f"{n} \\bmod {k}", f"\\gcd({n}, {k})"])


def _nested(rng: random.Random) -> str:
    opening, closing = rng.choice([("\\sqrt{2+", "}"), ("\\frac{1}{1+", "}"), ("(1+", ")"), ("\\left(", "\\right)"),
                                   ("{", "}"), ("[", "]"), ("\\{", "\\}"), ("|", "|"), ("\\lfloor ", "\\rfloor "),
                                   ("\\sin(", ")"), ("\\log_{", "}2"), ("-", ""), ("\\sqrt[3]{", "}"), ("e^{", "}"),
                                   ("\\text{", "}"), ("\\boxed{", "}"), ("\\overline{", "}"), ("\\sqrt{x+", "}")])
    depth = rng.choice([3, 6, 9, 11, 12, 20, 40, 140])
    return opening * depth + rng.choice(["2", "x", "9", "y+1"]) + closing * rng.choice([depth, depth, depth - 1])


def _long(rng: random.Random) -> str:
    piece = rng.choice(["9", "x", "+1", "1,", "1;", "(1,2),", "\\pm 1,", "x+", "x y ", "\\cdot 3", "2^", "\\frac12",
                        "&", "\\\\", "\\cup [1,2]", " and ", "x=", "1<", "\\text{a}", ":3", "$", "%", "\\%", "^\\circ",
                        "!", "\\sqrt"])
    return (piece * 300)[:rng.choice([20, 60, 150, 300])]


def _product(rng: random.Random) -> str:
    """Polynomials and radicals that are slow to expand, simplify or compare."""
    terms = [rng.choice(["(x+{0})", "(x^{{{0}}}+1)", "\\sqrt{{x+{0}}}", "(\\sqrt{{{0}}}+\\sqrt{{x}})", "\\sin({0}x)",
                         "(x+y+z+{0})", "\\frac{{x^{{{0}}}-1}}{{x-1}}", "\\ln(x+{0})", "|x-{0}|"]).format(
                             rng.randrange(2, 99)) for _ in range(rng.randrange(3, 12))]
    return rng.choice(["", "+"]).join(terms) + rng.choice(["", "^{99}", "^{x}", " = 0", " < 1"])


def _unicode(rng: random.Random) -> str:
    alphabet = "٣３七²³½¼⅓ⅦπΣ∞√∛∑∫±×÷−–≤≥≠∈∪∅ℝℂαβθ°′″⟨⟩⁄．，（）｛｝\u200b\u202e\u0301\ufeff\x00\x07🙂𝟕𝒙"
    return "".join(rng.choices(alphabet + "12x+^{}()", k=rng.randrange(1, 40)))


def _noise(rng: random.Random) -> str:
    tokens = re.findall(r"\S+", r"\frac \sqrt { } ( ) [ ] ^ _ 1 2 x y + - = < , \cdot \pi \infty \cup \in \text "
                        r"\begin{pmatrix} \end{pmatrix} & \\ ! | \sin \left \right \{ \} \ $ % \int \pm \overline "
                        r"\circ i e")
    return "".join(rng.choices(tokens, k=rng.randrange(2, 40)))


def _code(rng: random.Random) -> str:
    """What a parser that evaluates Python would run."""
    return rng.choice(["__import__('os').system('true')", "().__class__.__base__.__subclasses__()", "lambda: 0",
                       "exec('while 1: pass')", "[0]*10**10", "'a'*10**10", "Symbol('x')**10**10", "f'{9**9**9}'",
                       "nsimplify(9**9**9)", "factorial(10**9)", "primorial(10**6)", "N(pi,10**9)"]
                      ) + rng.choice(["", " = 1", "x"])


KINDS = [_tower, _powers, _factorial, _huge, _combinatorial, _nested, _long, _product, _unicode, _noise, _code]
