r"""Is the final answer of a maths response equal to the reference?

A strict front to math-verify. Choices, words, units, bases, lists, intervals and matrices are taken apart here
(srpo/rewards/answers.py), rational numbers are compared exactly, and only a scalar that needs algebra reaches sympy. It
is bounded first (length, depth, towers, factorials), so that little remains that could hang, and compared by value with
a relative tolerance: math-verify rounds to six decimals (1e-7 would equal 2e-7), and simplifying is what hangs most.
math-verify parses, and compares what is neither number, expression nor equation. Its own timeouts are off: they need
the main thread and lose to C code; a worker process with a deadline (srpo/rewards/pool.py) bounds the time.

The answer is the content of the last \boxed{}, or of <answer>, after the thinking; several different boxes are none.

What it takes for equal: a unit, currency, degree sign, base or "x =" that only one side has; 50% with 50 and with 0.5;
a list in any order with a set; "x = 1, y = 2" with (1, 2); a decimal within 1e-6 of an irrational number. What it
takes for different: a rounded decimal and the fraction; units that differ, even where the quantity is the same; an
answer in another base. Right answers that it rejects are the rows marked "reject" in tests/unit/rewards/pairs.tsv:
unit conversions, numbers in words, ordinals, a ratio and its fraction, set-builder notation, a transposed vector.
"""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from math import prod
from typing import Any

from srpo.errors import UserError
from srpo.rewards import answers
from srpo.rewards.answers import matrix, parts, plain, rational, respell, split_base, split_name, split_unit
from srpo.rewards.extract import MAX_ANSWER, Grade, answer_block, boxes, conclusion

_SEPARATORS = re.compile(r"[\s$,;.]*(?:\\?(?:text\{)?\s*(?:and|or)\s*\}?)?[\s$,;.]*")
_CHOICE = re.compile(r"\(?([A-J])\)?[.:),]?")
_CHOICE_AND_TEXT = re.compile(r"(?:\(([A-J])\)|([A-J])[):])[:.]?\s+(\S.*)", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z][A-Za-z '-]*")
_PROSE = re.compile(r"[A-Za-z][A-Za-z ,;:.'\"-]*[A-Za-z]{3}[.]?")
_RATIO = re.compile(r"\d+(:\d+)+")
_HEDGES = re.compile(r"\b(?:maybe|perhaps|not|either|unknown|wrong|incorrect)\b", re.IGNORECASE)
_BROKEN = re.compile(r"(?<!frac )(?<!\\)\b\d+\s+\d|(?:[-+*/^=<>:,]|\.\.|\\(?:cdot|times|div|le|ge))\s*$")
_INTERVALS = re.compile(r"[<>]|\\[lg]e(?![a-z])")            # in both: inequalities may differ in their variable
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|in|cup|cap|setminus|mathbb|neq?)(?![a-z])")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_HOSTILE = re.compile(r"\d{60,}"
                      r"|\^\s*\{[^{}]*\^|\^\s*\{?\s*-?\d{5,}|\*\*"       # towers, literal exponents
                      r"|(?:\d{5,}|\d\s*\^\s*\S+\)?)\s*\)?\s*!|!\s*\)?\s*!"  # factorials
                      r"|\\[dt]?binom\s*\{\s*\d{5,}"
                      r"|\\(?:sum|prod|int|iint|oint|lim)(?![a-z])")
_EXPONENTS = re.compile(r"(\S)\s*\^\s*\{?\s*-?(\d+)")
_COMBINATORIAL = re.compile(r"!|\\[dt]?binom|\\choose")


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
    a, b = respell(given), respell(reference)
    if not plain(b):
        raise UserError(f"answer = {reference!r}: empty")
    if choice := _CHOICE.fullmatch(plain(b)):
        return _choice(plain(a)) == choice[1]
    if plain(a) == plain(b):
        return True
    if _hostile(a) or _HEDGES.search(a) and not _HEDGES.search(b):
        return False
    try:
        return _same(a, b)
    except _Unreadable:
        raise UserError(f"answer = {reference!r}: cannot be read as mathematics") from None


class _Unreadable(Exception):
    """The reference, or a part of it."""


def _final_answer(text: str) -> str | None:
    block = answer_block(text)
    text = text if block is None else block
    found = boxes(text)
    if not found:
        text = text.strip()
        return text if block is not None and 0 < len(text) <= MAX_ANSWER else None
    different = {respell(found[-1][2])}
    for (_, end, content), (start, _, _) in zip(found[-2::-1], found[:0:-1], strict=False):
        if not _SEPARATORS.fullmatch(text[-4000:][end:start]):
            break
        different.add(respell(content))                       # side by side at the end: hedging
    last = found[-1][2].strip()
    while inner := re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", last, re.DOTALL):
        last = inner.group(1).strip()
    return last if last and len(last) <= MAX_ANSWER and len(different) == 1 else None


def _choice(s: str) -> str | None:
    """The letter of "(B)", "B." or "(B) seven"; None where the text goes on to other choices."""
    if m := _CHOICE.fullmatch(s):
        return m[1]
    m = _CHOICE_AND_TEXT.fullmatch(s)
    return (m[1] or m[2]) if m and not re.search(r"\b[A-J]\)|\b(?:or|and|not)\b|^[A-J]\b", m[3]) else None


def _hostile(s: str) -> bool:
    """What can blow a computer algebra system up before it is even compared."""
    depth = deepest = 0
    for c in s:
        depth += (c in "{([") - (c in "})]")
        deepest = max(deepest, depth)
    return (deepest > 12 or s.count("^") > 12 or s.count("\\frac") > 20 or s.count("(") > 40 or s.count("!") > 4
            or len(s) > 2 * MAX_ANSWER or _HOSTILE.search(s) is not None
            or (power := _largest_power(s)) > 20_000 or power > 99 and _COMBINATORIAL.search(s) is not None)


def _largest_power(s: str) -> int:
    """An upper bound of what the literal exponents come to: those of groups multiply."""
    exponents = [(base in ")}", max(int(e), 1)) for base, e in _EXPONENTS.findall(s)]
    return max((e for group, e in exponents if not group), default=1) * prod(e for group, e in exponents if group)


def _same(a: str, b: str) -> bool:
    """Names, units and bases first, since only one side may have them; then numbers, words, structure, algebra."""
    if plain(a) == plain(b):
        return True
    (name_a, rest_a), (name_b, rest_b) = split_name(a), split_name(b)
    if name_a == name_b or not name_a and "=" not in a or not name_b and "=" not in b:
        a, b = rest_a.removeprefix("="), rest_b
    (a, unit_a, factor_a), (b, unit_b, factor_b) = split_unit(a), split_unit(b)
    if unit_a and unit_b and unit_a != unit_b:
        return False
    a, b = plain(a), plain(b)
    if not a:
        return False
    if a == b and factor_a == factor_b:
        return True
    x, y = rational(a), rational(b)
    if x is not None and y is not None:
        x, y = x * factor_a, y * factor_b
        percent = unit_a != unit_b and "%" in (unit_a, unit_b)
        return x == y or percent and (x if unit_a == "%" else y) == 100 * (y if unit_a == "%" else x)
    if "_" in a + b and (found := _same_in_base(a, b)) is not None:
        return found
    if _WORDS.fullmatch(b) and _is_word(b) and (_WORDS.fullmatch(a) or len(b) > 4):
        return " ".join(a.lower().split()) == " ".join(b.lower().split())
    if _RATIO.fullmatch(a.replace(" ", "")) or _RATIO.fullmatch(b.replace(" ", "")):
        return a.replace(" ", "") == b.replace(" ", "")
    if "\\emptyset" in (a, b) or len(a) == len(b) == 1 and b.isalnum() or factor_a != factor_b:
        return False
    verdict = _same_parts(a, b)
    return _symbolic(a, b) if verdict is None else verdict


def _is_word(s: str) -> bool:
    """More than a product of variables."""
    return s.lower() == "no" or any(len(word) > 2 for word in s.replace("-", " ").split())


def _same_in_base(a: str, b: str) -> bool | None:
    """Digit for digit; a base that only one side names is taken for granted. None where there is no base."""
    (digits_a, base_a), (digits_b, base_b) = split_base(a), split_base(b)
    if not base_a and not base_b:
        return None
    return digits_a == digits_b and (base_a == base_b or not base_a or not base_b)


def _same_parts(a: str, b: str) -> bool | None:
    """Element by element; None where there are none, or where inequalities may say the same as intervals."""
    rows_a, rows_b = matrix(a), matrix(b)
    if rows_a is not None and rows_b is not None:
        return [len(row) for row in rows_a] == [len(row) for row in rows_b] and all(
            _same(x, y) for row_a, row_b in zip(rows_a, rows_b, strict=True) for x, y in zip(row_a, row_b, strict=True))
    if _INTERVALS.search(a) is None or _INTERVALS.search(b) is None:
        a, b = answers.as_interval(a), answers.as_interval(b)
    (kind_a, a_parts), (kind_b, b_parts) = parts(a), parts(b)
    if not kind_a and not kind_b:
        return None if (a, b) == (a_parts[0], b_parts[0]) else _same(a_parts[0], b_parts[0])
    loose = {",", "{}"}
    if kind_a != kind_b and not {kind_a, kind_b} <= loose and {kind_a, kind_b} != {",", "()"}:
        return None if _RELATION.search(a + b) else False
    if len(a_parts) != len(b_parts) or not all(a_parts):
        return False
    names_a, names_b = ({split_name(p)[0] for p in ps} - {""} for ps in (a_parts, b_parts))
    if kind_b == "cup" or {kind_a, kind_b} <= loose and (len(names_a | names_b) < 2 or bool(names_a) == bool(names_b)):
        return _same_in_any_order(a_parts, b_parts)
    return all(_same(x, y) for x, y in zip(a_parts, b_parts, strict=True))


def _same_in_any_order(a: list[str], b: list[str]) -> bool:
    left = list(b)
    for x in a:
        found = next((i for i, y in enumerate(left) if _same(x, y)), None)
        if found is None:
            return False
        del left[found]
    return True


@cache
def _math_verify() -> tuple[Any, Any, Any]:
    """parse, verify and its extraction configuration: half a second, which most runs of toy data never pay."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = (math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig())
    return math_verify.parse, math_verify.verify, config


@lru_cache(1024)                                              # the samples of a prompt share its reference
def _parse(s: str) -> Any:
    """sympy's object, or None. What math-verify's own extraction misses ("a + b + c", "\\sin^2 t") is parsed as is."""
    import sympy
    from latex2sympy2_extended import latex2sympy

    if (value := rational(s)) is not None:
        return sympy.Rational(value.numerator, value.denominator)
    if _TRIGONOMETRIC.search(s):
        s = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", s)   # math-verify reads sin 30° as sin 30
    parse, _, config = _math_verify()
    # Of an equation that it cannot read, parse would take what follows the last sign: "junk = 4" would be 4.
    parsed = parse(f"${s}$", config, fallback_mode="no_fallback", parsing_timeout=None) if "=" not in s else None
    if parsed:
        return parsed[0]
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}|[.,]$", s):
        return None                                           # words
    try:
        return latex2sympy(s, is_real=True, convert_degrees=False, normalization_config=None)
    except Exception:  # the parser raises whatever it stumbles over
        return None


def _symbolic(given: str, reference: str) -> bool:
    import sympy
    from latex2sympy2_extended.logic import And
    from sympy.core.relational import Relational

    y = _parse(reference)
    if y is None:
        if _PROSE.fullmatch(reference):
            return False
        raise _Unreadable
    x = None if _BROKEN.search(given) else _parse(given)
    if x is None:
        return False
    if isinstance(y, Relational | And) and isinstance(x, sympy.Expr):
        return False
    if isinstance(x, Relational | And) and isinstance(y, sympy.Expr) and not _names_its_right_side(x):
        return False
    if isinstance(x, sympy.Expr) and isinstance(y, sympy.Expr):
        if (symbols := x.free_symbols | y.free_symbols) and all(symbol.name == "i" for symbol in symbols):
            x, y = (z.subs({symbol: sympy.I for symbol in symbols}) for z in (x, y))
        same = _close(x, y) if not x.free_symbols and not y.free_symbols else _agree(x, y)
    elif isinstance(x, sympy.Eq) and isinstance(y, sympy.Eq):
        same = _agree(x.lhs - x.rhs, y.lhs - y.rhs, ratio=True)
    else:
        same = None
    if same is not None:
        return same
    _, verify, _ = _math_verify()
    return bool(verify(y, x, float_rounding=6, numeric_precision=30, allow_set_relation_comp=True,
                       timeout_seconds=None))


def _names_its_right_side(relation: Any) -> bool:
    """ "x = 5" may stand for 5, and "2 + 3 = 5"; but neither "(anything) = 0" for 0, nor "3 = 4" for 4."""
    import sympy

    equation = relation.args[0] if relation.args and hasattr(relation.args[0], "lhs") else relation
    left, right = getattr(equation, "lhs", None), getattr(equation, "rhs", None)
    if left is None or right is None:
        return False
    if left.is_Symbol or isinstance(left, sympy.core.function.AppliedUndef):
        return True
    return not left.free_symbols and not right.free_symbols and bool(_close(left, right))


def _close(x: Any, y: Any) -> bool | None:
    """The same rational numbers, or within 1e-6 of the larger; None for what is no pair of finite numbers."""
    import sympy

    a, b = sympy.N(x, 30), sympy.N(y, 30)
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return None
    larger = abs(a) if abs(a) > abs(b) else abs(b)
    if x.is_rational and y.is_rational:
        return bool(x.doit() == y.doit() if larger < sympy.Float("1e2000") else x == y)
    return bool(abs(a - b) <= larger * sympy.Float("1e-6"))


def _agree(x: Any, y: Any, *, ratio: bool = False) -> bool | None:
    """Whether two expressions have the same values, or values in the same ratio, at three points. It says what simplify
    would, without its bombs (Schwartz, "Fast Probabilistic Algorithms", 1980); None where a value is no finite number.
    """
    import sympy

    symbols = sorted(x.free_symbols | y.free_symbols, key=str)
    ratios = []
    for point in range(3):
        at = {s: sympy.Float(_POINTS[(3 * i + point) % len(_POINTS)], 30) for i, s in enumerate(symbols)}
        a, b = (z.evalf(30, subs=at) for z in (x, y))
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite) or b.is_zero:
            return None
        ratios.append(a / b)
    one = ratios[0] if ratio else 1
    return bool(one != 0) and all(bool(abs(r - one) <= abs(one) * sympy.Float("1e-12")) for r in ratios)


_POINTS = ("0.7310585786", "-1.6180339887", "2.6651441426", "-0.5772156649", "1.2020569031", "0.9159655941",
           "1.4513692348", "0.2614972128", "-2.5029078750", "1.7632228343", "0.3036630028")
