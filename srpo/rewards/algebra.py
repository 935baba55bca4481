"""Whether two sympy objects are equal. Expressions are compared by value to thirty digits, which says what simplifying
would without its bombs (Schwartz, "Fast Probabilistic Algorithms", 1980); math-verify rounds to six decimals. Sets,
inequalities and matrices are left to math-verify.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

DIGITS, EXACT, NOTHING = 60, 1e-30, 1e-40
_POINTS = ("0.7310585786", "-1.6180339887", "2.6651441426", "-0.5772156649", "1.2020569031", "0.9159655941",
           "1.4513692348", "0.2614972128", "-2.5029078750", "1.7632228343", "0.3036630028")
_FARTHEST = 10 ** 6
_HUGE = 10 ** 2000


def close(x: Any, y: Any, decimals: int | None = None) -> bool:
    """The same number. `decimals`: one of them is a decimal fraction of so many places; it may stand for an irrational
    number that it is within 1e-6 of (relative), and right to its last place."""
    if x.is_infinite or y.is_infinite or x == y:
        return bool(x == y)
    a, b = _value(x, {}), _value(y, {})
    if a is None or b is None:
        return False
    larger = max(abs(a), abs(b))
    if x.is_rational and y.is_rational:
        return larger < _HUGE and bool(x.doit() == y.doit())
    error = abs(a - b)
    return bool(error <= EXACT * larger or decimals is not None and error <= 1e-6 * larger
                and error <= max(10.0 ** -decimals, 1e-12 * larger))


def agree(x: Any, y: Any, *, ratio: bool = False) -> bool:
    """Whether two expressions have the same values, or values in the same ratio, at three points near zero and at two
    beyond their largest constant. Where both are complex, as roots and logarithms of negative numbers are, the point
    tells nothing, unless all are."""
    import sympy

    if x == y:
        return True
    symbols = sorted(x.free_symbols | y.free_symbols, key=str)
    constants = [abs(n) for n in x.atoms(sympy.Rational) | y.atoms(sympy.Rational)]
    scales = [1, 1, 1, *2 * [min(3 * max(constants, default=0) + 1, _FARTHEST)]]
    pairs = []
    for point, scale in enumerate(scales):
        at = {s: sympy.Rational(_POINTS[(3 * i + point % 3) % len(_POINTS)]) * scale for i, s in enumerate(symbols)}
        a, b = _value(x, at), _value(y, at)
        if (a is None) != (b is None):
            return False
        if a is not None and b is not None and max(abs(a), abs(b)) > NOTHING:
            pairs.append((a, b))
    pairs = [(a, b) for a, b in pairs if _is_real(a) or _is_real(b)] or pairs
    if ratio:
        return len(pairs) > 1 and all(min(abs(a), abs(b)) > NOTHING for a, b in pairs) and all(
            abs(a * d - b * c) <= EXACT * abs(a * d) for (a, b), (c, d) in pairwise(pairs))
    return bool(pairs) and all(abs(a - b) <= EXACT * abs(a) for a, b in pairs)


def verify(x: Any, y: Any) -> bool:
    """math-verify's opinion. Its own timeouts are off: they need the main thread and lose to C code."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return bool(math_verify.verify(y, x, float_rounding=6, numeric_precision=30, allow_set_relation_comp=True,
                                   timeout_seconds=None))


def _value(x: Any, at: dict[Any, Any]) -> Any:
    """A complex number of DIGITS digits; None for what has no finite value."""
    import mpmath  # type: ignore[import-untyped]
    from sympy.core.evalf import PrecisionExhausted

    mpmath.mp.dps = DIGITS
    try:
        parts = x.evalf(DIGITS, subs=at).as_real_imag()
    except PrecisionExhausted:                                # the floor of a number of thousands of digits
        return None
    if not all(part.is_number and part.is_finite and part.evalf(DIGITS).is_Number for part in parts):
        return None
    return mpmath.mpc(*(str(part.evalf(DIGITS)) for part in parts))


def _is_real(z: Any) -> bool:
    return bool(abs(z.imag) <= EXACT * abs(z.real))
