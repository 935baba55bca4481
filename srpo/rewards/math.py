r"""Is the final answer of a maths response equal to the reference?

A strict front to math-verify. Most answers are integers, words or choices and never reach it; the rest is bounded
first (length, depth, towers, factorials), so that little remains that could hang it, and compared again with a
relative tolerance, since it rounds to six decimals (1e-7 would equal 2e-7). Its own timeouts are off: they need the
main thread and lose to C code; a worker process with a deadline (srpo/rewards/pool.py) is what bounds the time.

The answer is the content of the last \boxed{}, or of <answer>, after the thinking; several different boxes are none.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from typing import Any

from srpo.errors import UserError
from srpo.rewards.extract import MAX_ANSWER, Grade, answer_block, boxes, conclusion

_SEPARATORS = re.compile(r"[\s$,;.]*(?:\\?(?:text\{)?\s*(?:and|or)\s*\}?)?[\s$,;.]*")
_INTEGER = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.0+)?")
_CHOICE = re.compile(r"\s*(?:\\text(?:bf)?\s*\{)?\s*\(?([A-J])\)?\s*\}?\s*[.:)]?\s*")
_CHOICE_AND_TEXT = re.compile(r"\s*(?:\\text(?:bf)?\s*\{)?\s*\(([A-J])\)\s*\}?(?:[\s~]|\\ |\\,|\\quad|:)+\S.*",
                              re.DOTALL)
_UNIT = re.compile(r"(?:\\[,; ~]|\s)*(?:\\(?:text|textbf|mathrm|mbox|operatorname)\s*\{[^{}]*[A-Za-z][^{}]*\})"
                   r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?\s*$")
_WORDS = re.compile(r"[A-Za-z][A-Za-z \-']+")
_RATIO = re.compile(r"\d+(:\d+)+")
_SCIENTIFIC = re.compile(r"^([-+]?\d*\.?\d+)[eE]([-+]?\d{1,4})$")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,; !]|~|\{,\}|\\ )(?=\d{3}(?!\d))")


def grade(response: str, answer: str) -> Grade:
    """Judge a response against the reference answer. Raises UserError when the reference cannot be understood."""
    given = _final_answer(conclusion(response)[-20_000:])
    if given is None:
        return Grade(0.0, None, "no single final answer")
    same = equal(given, answer)
    return Grade(float(same), given, "correct" if same else "wrong answer")


def check(answer: str) -> None:
    """Raise UserError for a reference answer that is empty, or cannot be read as anything.

    Cheap enough for every problem of a run: an answer with a letter or a digit and balanced braces is left to `grade`.
    """
    if not any(map(str.isalnum, answer)) or answer.count("{") != answer.count("}"):
        equal("0", answer)


def equal(given: str, reference: str) -> bool:
    """Whether two answers are the same mathematical object. Raises UserError for an unusable reference."""
    if not reference.strip().strip("$"):
        raise UserError(f"answer = {reference!r}: empty")
    if choice := _CHOICE.fullmatch(reference.strip().strip("$")):
        found = _CHOICE.fullmatch(given) or _CHOICE_AND_TEXT.fullmatch(given)
        return found is not None and found.group(1) == choice.group(1)
    a, b = _normalize(given), _normalize(reference)
    if a == b:
        return True
    if _INTEGER.fullmatch(b) and _INTEGER.fullmatch(a):
        return _integer(a) == _integer(b)
    if _WORDS.fullmatch(b) and _WORDS.fullmatch(a):
        return a.lower() == b.lower()
    if _RATIO.fullmatch(a.replace(" ", "")) or _RATIO.fullmatch(b.replace(" ", "")):
        return a.replace(" ", "") == b.replace(" ", "")
    if "\\emptyset" in (a, b):
        return a.replace("\\{\\}", "\\emptyset") == b.replace("\\{\\}", "\\emptyset")
    if _hedges(a, b) or _hostile(a):
        return False
    return _symbolic(a, b, reference)


def _final_answer(text: str) -> str | None:
    block = answer_block(text)
    text = text if block is None else block
    found = boxes(text)
    if not found:
        text = text.strip()
        return text if block is not None and 0 < len(text) <= MAX_ANSWER else None
    answers = {_normalize(found[-1][2])}
    for (_, end, content), (start, _, _) in zip(found[-2::-1], found[:0:-1], strict=False):
        if not _SEPARATORS.fullmatch(text[-4000:][end:start]):
            break
        answers.add(_normalize(content))                      # side by side at the end: hedging
    last = found[-1][2].strip()
    while inner := re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", last, re.DOTALL):
        last = inner.group(1).strip()
    return last if last and len(last) <= MAX_ANSWER and len(answers) == 1 else None


def _normalize(s: str) -> str:
    """One spelling for what looks the same: signs, spaces, thousands, fractions, text commands, units, currency."""
    without_unit = _UNIT.sub("", s)
    s = (without_unit if without_unit.strip() else s).strip().strip("$").strip()
    s = _THOUSANDS.sub(",", s)
    for old, new in (("−", "-"), ("–", "-"), ("\\!", ""), ("\\,", ""), ("\\;", ""), ("{,}", ","), ("\\left", ""),
                     ("\\right", ""), ("\\tfrac", "\\frac"), ("\\dfrac", "\\frac"), ("\\varnothing", "\\emptyset")):
        s = s.replace(old, new)
    s = re.sub(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", s)
    s = re.sub(r"^\\?\$", "", s.rstrip(".").strip())
    return _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", s)


def _integer(s: str) -> int | str:
    digits = s.replace(",", "").split(".")[0]
    return int(digits) if len(digits) <= MAX_ANSWER else digits


def _hedges(given: str, reference: str) -> bool:
    """Several answers, or none, where the reference is one."""
    several = re.search(r"\b(?:or|and)\b", given) and not re.search(r"\b(?:or|and)\b|,|\\pm|\\\{|;", reference)
    return bool(several or re.search(r"\b(?:maybe|not|either|unknown)\b", given))


def _hostile(s: str) -> bool:
    """What can blow a computer algebra system up before it is even compared."""
    depth = deepest = 0
    for c in s:
        depth += (c in "{([") - (c in "})]")
        deepest = max(deepest, depth)
    return (deepest > 12 or s.count("^") > 12 or s.count("\\frac") > 20 or s.count("(") > 40
            or any(re.search(pattern, s) for pattern in _HOSTILE))


_HOSTILE = (
    r"\d{60,}",
    r"\^\s*\{[^{}]*\^", r"\^\s*\{?\s*-?\d{5,}",               # towers, literal exponents
    r"(\d{5,}|\d\^\S+\)?)\s*\)?\s*!",                         # factorials
    r"\\binom\s*\{\s*\d{5,}",
    r"\\(?:sum|prod|int|iint|oint|lim)\b",
)


@cache
def _math_verify() -> tuple[Any, Any, Any]:
    """parse, verify and its extraction configuration: half a second, which most runs of toy data never pay."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = (math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig())
    return math_verify.parse, math_verify.verify, config


def _parse(s: str) -> Any:
    parse, _, config = _math_verify()
    parsed = parse(f"${s}$", config, fallback_mode="no_fallback", parsing_timeout=None)
    return parsed[0] if parsed else None


def _symbolic(given: str, reference: str, original: str) -> bool:
    import sympy
    from latex2sympy2_extended.logic import And
    from sympy.core.relational import Relational

    y = _parse(reference)
    if y is None:
        raise UserError(f"answer = {original!r}: cannot be read as mathematics")
    x = _parse(given)
    if x is None:
        return False
    if isinstance(x, Relational | And) and isinstance(y, sympy.Expr):
        # "x = 5" may stand for 5, but not "(anything) = 0" for 0.
        left = getattr(x.args[0] if isinstance(x, And) else x, "lhs", None)
        if left is None or not (left.is_Symbol or not left.free_symbols
                                or isinstance(left, sympy.core.function.AppliedUndef)):
            return False
    _, verify, _ = _math_verify()
    if not verify(y, x, float_rounding=6, numeric_precision=30, allow_set_relation_comp=True, timeout_seconds=None):
        return False
    if "%" in given + reference or not (isinstance(x, sympy.Expr) and isinstance(y, sympy.Expr)):
        return True
    return bool(x.free_symbols or y.free_symbols) or _close(x, y)


def _close(x: Any, y: Any) -> bool:
    """Numbers within 1e-6 of the larger."""
    import sympy

    a, b = sympy.N(x, 30), sympy.N(y, 30)
    return a == b or not (a.is_number and b.is_number) or bool(abs(a - b) <= max(abs(a), abs(b)) * sympy.Float("1e-6"))
