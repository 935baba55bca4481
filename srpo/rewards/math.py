r"""Is the final answer of a maths response equal to the reference?

Choices, words, units, bases, lists, intervals and matrices are taken apart here (srpo/rewards/answers.py, units.py),
rational numbers are compared exactly, and only a scalar that needs algebra reaches math-verify's LaTeX parser and sympy
(algebra.py). It is bounded first (length, depth, towers, factorials), so that little remains that could hang; a worker
process with a deadline (pool.py) bounds the time: `grade` has one, a run has many. The parser is called directly:
math-verify's own `parse` takes a number from within what it cannot read ("3 \to 4" is 4) and drops primes, case and
words.

The answer is the content of the last \boxed{}, or of <answer>, after the thinking; several different boxes are none.

What it takes for equal: a unit, currency, degree sign, base or "x =" that only one side has; 50% with 50 and with 0.5;
a list in any order with a set; "x = 1, y = 2" with (1, 2); an irrational number with a decimal fraction that is right
to its last place and within 1e-6; expressions that agree wherever both are real; \sqrt[3]{-8} and -2. What it takes
for different: a rounded decimal and the fraction; units that differ, even where the quantity is the same; an answer in
another base; symbols that differ in case. Right answers that it rejects are the rows marked "reject" in
tests/unit/rewards/pairs.tsv: among them unit conversions, numbers in words, ordinals, a ratio and its fraction,
set-builder notation, a transposed vector, another name for a bound variable.
"""

from __future__ import annotations

import atexit
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from functools import cache, lru_cache
from math import prod
from typing import Any

from srpo.config import Reward
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.rewards import algebra, answers
from srpo.rewards.answers import matrix, parts, plain, rational, respell, split_base, split_name
from srpo.rewards.extract import MAX_ANSWER, Grade, answer_block, boxes, conclusion
from srpo.rewards.pool import Lost, Pool
from srpo.rewards.units import split_unit, units_differ

_ESCAPED = re.compile(r"\\.", re.DOTALL)
_SEPARATORS = re.compile(r"[\s$,;.]*(?:\\?(?:text\{)?\s*(?:and|or)\s*\}?)?[\s$,;.]*")
_CHOICE = re.compile(r"\(?([A-J])\)?[.:),]?")
_CHOICE_AND_TEXT = re.compile(r"(?:\(([A-J])\)|([A-J])[):])[:.]?\s+(\S.*)", re.DOTALL)
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[ '-])*")
_PROSE = re.compile(r"[^\W\d_](?:[^\W\d_]|[ ,;:.'\"-])*[^\W\d_]{2,}[.]?(?: \d{1,2}(?:, \d{4})?)?")
_HEDGES = re.compile(r"\b(?:maybe|perhaps|possibly|probably|not|either|unknown|wrong|incorrect|false)\b", re.IGNORECASE)
_BROKEN = re.compile(r"(?<!frac )(?<!\\)\b\d+\s+\d|-0\d|(?:[-+*/^=<>:,]|\.\.|\\(?:cdot|times|div|le|ge))\s*$")
_OPAQUE = re.compile(r"'|(?<![A-Za-z}\])|])\s*_|[A-Za-z]\s*\^\s*\{?\s*\(\d+\)")   # the parser drops primes and such
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_INTERVALS = re.compile(r"[<>]|\\[lg]e(?![a-z])")            # in both: inequalities may differ in their variable
_SAYS = re.compile(r"\A\s*(?:\\text\{)?(?:so|thus|therefore)?,?\s*(?:the )?(?:final )?answer(?:is|\s|:)+\}?", re.I)
_ONLY = re.compile(r"\\\{((?!\\emptyset)[^,;{}]*?)\\\}")                       # a set of one
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|in|cup|cap|setminus|mathbb|neq?)(?![a-z])")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DECIMAL = re.compile(r"-?\d*\.\d+")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[A-Za-z]*\}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_HOSTILE = re.compile(r"\d{60,}"
                      r"|\^\s*\{[^{}]*(?:[\d)}]\s*\^|\^\s*\{[^{}]*\^)"  # towers
                      r"|\^\s*\{?\s*-?\d{5,}|\*\*"                    # literal exponents
                      r"|(?:\d{5,}|\d\s*\^\s*\S+\)?)\s*\)?\s*!|!\s*\)?\s*!"  # factorials
                      r"|\\[dt]?binom\s*\{\s*\d{5,}"
                      r"|\\(?:sum|prod|int|iint|oint|lim)(?![a-z])")
_EXPONENTS = re.compile(r"(\S)\s*\^\s*\{?\s*-?(\d+)")
_COMBINATORIAL = re.compile(r"!|\\[dt]?binom|\\choose")

TIMEOUT = 10.0
"""Seconds that `grade` may take."""
MAX_VALUE = 100
"""Characters of an answer that `value` looks at."""


def grade(response: str, answer: str) -> Grade:
    """`judge` in a warm worker process, which is killed when it takes longer than TIMEOUT: what hangs, dies, or wants
    too much memory is a wrong answer, and the reason says so. Raises UserError for an unusable reference."""
    thread, pool = _warm(os.getpid())
    request = {"problem": asdict(Problem("", "math", "", answer=answer)), "text": response, "tokens": 0}
    reply, = thread.submit(pool.result().map, [request]).result()
    if isinstance(reply, Lost):
        return Grade(0.0, None, reply.why)
    if "data" in reply:
        raise UserError(reply["data"])
    if reply["errors"]:
        return Grade(0.0, None, reply["errors"][0][1])
    return Grade(reply["correct"], reply["extracted"], reply["reason"])


@cache
def _warm(_process: int) -> tuple[ThreadPoolExecutor, Future[Pool]]:
    """This process's worker, and the thread that serves it: a worker ends with the thread that started it, and callers'
    threads come and go."""
    thread = ThreadPoolExecutor(1)
    settings = {"reward": Reward(style="boxed").model_dump(), "max_response_tokens": 1}
    pool = thread.submit(Pool, "srpo.rewards.worker", settings, 1, TIMEOUT)
    atexit.register(lambda: pool.result().close())
    return thread, pool


def judge(response: str, answer: str) -> Grade:
    """Judge a response against the reference answer, here. Raises UserError when the reference cannot be understood."""
    given = extract(response)
    if given is None:
        return Grade(0.0, None, "no single final answer")
    try:
        same = equal(given, answer)
    except Unreadable:
        return Grade(0.0, given, "not the reference's own text, which is all that can be compared")
    return Grade(float(same), given, "correct" if same else "wrong answer")


def check(answer: str) -> None:
    """Raise UserError for a reference answer that is empty, or cannot be read as anything. Cheap enough for every
    problem of a run."""
    reference = respell(answer)
    if not plain(reference):
        raise UserError(f"answer = {answer!r}: empty")
    braces = _ESCAPED.sub("", reference)
    if not (any(map(str.isalnum, plain(reference)))) or braces.count("{") != braces.count("}"):
        raise UserError(f"answer = {answer!r}: cannot be read as mathematics")


class Unreadable(UserError):
    """A reference that algebra cannot be done with: nothing but its own text equals it."""


def equal(given: str, reference: str) -> bool:
    """Whether two answers are the same mathematical object. Raises UserError for an unusable reference, Unreadable when
    it would take algebra to tell and the reference cannot be parsed."""
    check(reference)
    a, b = respell(_SAYS.sub("", given)), respell(reference)
    if choice := _CHOICE.fullmatch(plain(b)):
        return _choice(plain(a)) == choice[1]
    if plain(a) == plain(b):
        return True
    a, b = (only[1] if (only := _ONLY.fullmatch(s)) else s for s in (a, b))
    if _hostile(a) or _HEDGES.search(a) and not _HEDGES.search(b):
        return False
    try:
        return _same(a, b)
    except _NoAlgebra:
        raise Unreadable(f"answer = {reference!r}: cannot be read as mathematics") from None


def value(answer: str) -> Fraction | None:
    """The rational number that an answer says, whatever name and unit stand with it; None for what is more, or long.
    Cheap. Of two answers that have one, `equal` are only those with the same, or, as percent, with the hundredfold."""
    s = respell(answer)
    if len(s) > MAX_VALUE:
        return None
    number, _, factor = split_unit(split_name(s)[1].removeprefix("=").removeprefix("\\approx"))
    found = rational(plain(number))
    return None if found is None else found * factor


class _NoAlgebra(Exception):
    """The reference, or a part of it, cannot be parsed."""


def extract(response: str) -> str | None:
    """The final answer after the thinking; None where there is none, or several."""
    text = conclusion(response)[-20_000:]
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
    a, b = answers.unpack(a), answers.unpack(b)
    (name_a, rest_a), (name_b, rest_b) = split_name(a), split_name(b)
    if name_a and name_b and name_a != name_b and (_WORD.search(plain(name_a)) or _WORD.search(plain(name_b))):
        return False
    if name_a == name_b or not name_a and "=" not in a or not name_b and "=" not in b:
        a, b = rest_a.removeprefix("="), rest_b
    a, b = a.removeprefix("\\approx"), b.removeprefix("\\approx")
    (a, unit_a, factor_a), (b, unit_b, factor_b) = split_unit(a), split_unit(b)
    if units_differ(unit_a, unit_b):
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
        return _letters(a) == _letters(b)
    if ":" in a or ":" in b:
        return "".join(a.split()) == "".join(b.split())       # ratios and times
    if "\\emptyset" in (a, b) or len(a) == len(b) == 1 and b.isalnum() or factor_a != factor_b:
        return False
    verdict = _same_parts(a, b)
    return _symbolic(a, b) if verdict is None else verdict


def _letters(s: str) -> str:
    return " ".join(s.lower().split())


def _is_word(s: str) -> bool:
    """More than a product of variables."""
    return s.lower() == "no" or not s.isascii() or any(len(word) > 2 for word in s.replace("-", " ").split())


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
    loose, ordered = {",", "{}"}, {",", "()"}
    if _INTERVALS.search(a) is None or _INTERVALS.search(b) is None:
        read = answers.as_interval(a), answers.as_interval(b)
        ordered = ordered if (a, b) == read else set()        # "1 < x < 2" is no list of 1 and 2
        a, b = read
    (kind_a, a_parts), (kind_b, b_parts) = parts(a), parts(b)
    if not kind_a and not kind_b:
        return None if (a, b) == (a_parts[0], b_parts[0]) else _same(a_parts[0], b_parts[0])
    if kind_a != kind_b and not {kind_a, kind_b} <= loose and {kind_a, kind_b} != ordered:
        return None if _RELATION.search(b if kind_b == "," else a + b) else False
    if "{}" in (kind_a, kind_b):
        a_parts, b_parts = list(dict.fromkeys(a_parts)), list(dict.fromkeys(b_parts))
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


@lru_cache(1024)                                              # the samples of a prompt share its reference
def _parse(s: str) -> Any:
    """sympy's object, with exact numbers and real odd roots; None for what is no mathematics from end to end."""
    import sympy
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if (value := rational(s)) is not None:
        return sympy.Rational(value.numerator, value.denominator)
    if _TRIGONOMETRIC.search(s):
        s = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", s)   # else sin 30° is sin 30
    s = answers.for_parser(s)
    if _OPAQUE.search(s) or any(sorted(word) != list(word) for word in _WORD.findall(_ENVIRONMENT.sub("", s))):
        return None                                           # "abc" may be a product, other words are not
    try:
        parsed = latex2sympy(s, is_real=True, convert_degrees=False, normalization_config=None,
                             conversion_config=ConversionConfig(lowercase_symbols=False))
    except Exception:  # the parser raises whatever it stumbles over
        return None
    return parsed if isinstance(parsed, sympy.MatrixBase) else _exact(sympy.sympify(parsed))


def _exact(x: Any) -> Any:
    r"""Decimals as fractions; odd roots of real numbers as real ones, where sympy has \sqrt[3]{-8} complex."""
    import sympy

    x = x.xreplace({held: held.args[0] for held in x.atoms(sympy.UnevaluatedExpr)})
    x = x.xreplace({number: sympy.Rational(str(number)) for number in x.atoms(sympy.Float) if number.is_finite})
    i = [symbol for symbol in x.free_symbols if symbol.name == "i"]
    if i or not (roots := [p for p in x.atoms(sympy.Pow) if p.exp.is_Rational and p.exp.q % 2 and p.exp.q > 1]):
        return x
    return x.xreplace({p: sympy.sign(p.base) ** p.exp.p * sympy.Abs(p.base) ** p.exp for p in roots})


def _symbolic(given: str, reference: str) -> bool:
    import sympy
    from latex2sympy2_extended.logic import And
    from sympy.core.relational import Relational

    broken = _BROKEN.search(given)
    if not broken and "".join(given.split()) == "".join(reference.split()):
        return True
    y = _parse(reference)
    if y is None:
        if _PROSE.fullmatch(reference):
            return False
        raise _NoAlgebra
    x = None if broken else _parse(given)
    if x is None:
        return False
    if isinstance(x, Relational | And) and isinstance(y, sympy.Expr):
        if not _names_its_right_side(x):
            return False
        x = (x.args[0] if isinstance(x, And) else x).rhs
    if all(isinstance(z, sympy.Expr) and not z.has(sympy.MatrixBase, sympy.MatrixExpr) for z in (x, y)):
        if ("\\infty" in given) != ("\\infty" in reference):
            return False                                      # sympy has 1 for \infty^0
        if (symbols := x.free_symbols | y.free_symbols) and all(symbol.name == "i" for symbol in symbols):
            x, y = (z.subs({symbol: sympy.I for symbol in symbols}) for z in (x, y))
        decimals = min((len(z.rpartition(".")[2]) for z in (given, reference) if _DECIMAL.fullmatch(z)), default=None)
        return algebra.close(x, y, decimals) if not x.free_symbols | y.free_symbols else algebra.agree(x, y)
    if isinstance(x, sympy.Eq) and isinstance(y, sympy.Eq) and all(isinstance(z, sympy.Expr) for z in x.args + y.args):
        return algebra.agree(x.lhs - x.rhs, y.lhs - y.rhs, ratio=True)
    kinds = Relational | And | sympy.Set, sympy.MatrixBase | sympy.MatrixExpr
    return any(isinstance(x, kind) and isinstance(y, kind) for kind in kinds) and algebra.verify(x, y)


def _names_its_right_side(relation: Any) -> bool:
    """ "x = 5" may stand for 5, and "2 + 3 = 5"; but neither "(anything) = 0" for 0, nor "3 = 4" for 4."""
    import sympy

    equation = relation.args[0] if relation.args and hasattr(relation.args[0], "lhs") else relation
    if not isinstance(equation, sympy.Eq) or not isinstance(equation.rhs, sympy.Expr):
        return False
    left, right = equation.lhs, equation.rhs
    if left.is_Symbol or isinstance(left, sympy.core.function.AppliedUndef):
        return True
    return not left.free_symbols and not right.free_symbols and algebra.close(left, right)
