r"""How a final answer is read, before any algebra: one spelling for what looks the same, exact rational numbers, and
what a list, set, interval, tuple, union or matrix is made of. Text work on at most a few hundred characters.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

TEXT = r"\\(?:text|textnormal|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|hbox|operatorname)\s*\{([^{}]*)\}"
_LATEX_NAMES = """º:° 、:, 。:. ∶:: ℃:°C ℉:°F √:\\sqrt ∠:\\angle ≠:\\ne ≈:\\approx ⋅:\\cdot ÷:\\div ∩:\\cap
ℝ:\\mathbb{R} ℤ:\\mathbb{Z} ℕ:\\mathbb{N} ℚ:\\mathbb{Q} ℂ:\\mathbb{C}"""
_SYMBOLS = {ord(pair[0]): pair[2:] for pair in _LATEX_NAMES.split()}
_RAISED, _LOWERED, _VULGAR = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+"), re.compile("[₀-₉]+"), re.compile("[¼-¾⅐-⅞]")
_SPELLINGS = [(re.compile(pattern), new) for pattern, new in (
    (r"\s+", " "), (r"[−–]", "-"), (r"\^\s*(-\d+)", r"^{\1}"),
    (r"(?<=\d)(?:,?\\!|\\[,; ]|~|\{,\})(?=\d{3}(?!\d))", ","), (r"\{,\}", ","),
    (r"(?<!\\)\\(?:[!,;: ]|q?quad(?![a-z]))|~", " "),
    (r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-z])", ""), (r"\\[tdc]frac", r"\\frac"),
    (r"\{([^{}\\]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"\\(?:large|Large|LARGE|huge|Huge|small|bf|it|rm|checkmark|therefore)(?![A-Za-z])", ""),
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""), (r"\\underline\s*\{([^{}]*)\}", r"\1"), (r"\s*\\\\\s*\Z", ""),
    (r"\A\s*\{([^{}\\]*)\}\s*\Z", r"\1"), (r"\\phantom\s*(?:\{[^{}]*\}|.)", ""),
    (r"\\varnothing|∅|\\\{\s*\\\}", r"\\emptyset "), (r"\\langle|⟨", "("), (r"\\rangle|⟩", ")"),
    (r"\\lbrace", r"\\{"), (r"\\rbrace", r"\\}"),
    (r"\\leq(?:slant)?(?![a-z])|≤", r"\\le "), (r"\\geq(?:slant)?(?![a-z])|≥", r"\\ge "),
    (r"π", r"\\pi "), (r"∞", r"\\infty "), (r"±", r"\\pm "), (r"×", r"\\times "), (r"·", r"\\cdot "),
    (r"∪", r"\\cup "), (r"∈", r"\\in "), (r"°|\\degree(?![a-z])", r"^\\circ"), (r"…", "..."))]

_ARGUMENT = r"\s*([0-9A-Za-z]|\\[a-z]+(?![a-z{]))"
_PARSER_SPELLINGS = [(re.compile(pattern), new) for pattern, new in (
    (r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|exp|sqrt|pi|infty)(?![A-Za-z])", r"\\\1"),
    (r"\\lg(?![a-z])", r"\\log_{10}"),
    (r"\\log_\{?e\}?(?![a-z])", r"\\ln "), (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (rf"\\sqrt{_ARGUMENT}", r"\\sqrt{\1}"),
    (rf"\\sqrt\s*(\[[^\[\]]*\]){_ARGUMENT}", r"\\sqrt\1{\2}"), (rf"\\frac{_ARGUMENT}", r"\\frac{\1}"),
    (rf"(\\frac\s*\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}){_ARGUMENT}", r"\1{\2}"),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""), (r"(?<![\d.])\.(?=\d)", "0."))]

_DELIMITED = re.compile(r"\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
_DOLLAR = re.compile(r"(?<!\\)\$")

_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_DOTS = r"(?:\.{3}|\\[lc]?dots)"
_FRACTION = re.compile(rf"\\frac\s*(?:\{{\s*(-?\s*{_NUMBER})\s*\}}|(\d))\s*(?:\{{\s*(-?\s*{_NUMBER})\s*\}}|(\d))"
                       rf"|\(?({_NUMBER})\)?\s*/\s*\(?(-?{_NUMBER})\)?")
_MIXED = re.compile(r"(\d+)(\s*\\frac.*|\s+\d+\s*/\s*\d+)")
_OVERLINED = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))")
_CONTINUED = re.compile(rf"(\d*)\.(\d{{0,9}}?)(?:(\d)\3\3+|(\d{{2,12}}?)\4+){_DOTS}")
_SCIENTIFIC = re.compile(rf"(?:({_NUMBER})\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*(?:\{{\s*([-+]?\d{{1,3}})\s*\}}|(\d))"
                         rf"|({_NUMBER})\s*[eE]([-+]?\d{{1,3}})")
_NAME = re.compile(r"\s*[(|\\A-Za-z](?:[A-Za-z\\_{}()',|\s\d]|\^\{-1\}(?=\())*")
_NO_NAME = re.compile(r"\\(?:frac|sqrt|sin|cos|tan|cot|log|ln|exp|pm|int|sum|prod|bar|overline|sim|propto|neg|neq?)"
                      r"|[\s})]\d|^\s*(?!gcd|lcm|max|min|sum)[a-z]{2,3}\s*$")   # "xy" is a product
_IS = re.compile(r"=|\\approx(?![a-z])|\\in(?![a-z])")
_BASE = re.compile(r"\s*(-?[0-9A-F.]+)\s*_\s*\{?\s*(?:\\text\s*\{)?\s*(\d+|two|three|eight|sixteen)\s*\}*\s*")
_BASES = {"two": "2", "three": "3", "eight": "8", "sixteen": "16"}
_MATRIX = re.compile(r"\(?\s*\\begin\{(?:[pbB]?matrix|array)\}(?:\{[^{}]*\})?(.*?)\\end\{[a-zB]*\}\s*\)?", re.DOTALL)
_PHRASES = {"all real numbers": "\\mathbb{R}", "all reals": "\\mathbb{R}", "empty set": "\\emptyset",
            "none": "\\emptyset", "no solution": "\\emptyset", "no solutions": "\\emptyset",
            "no real solutions": "\\emptyset"}
_BETWEEN = re.compile(r"([^<>=]+?)\s*(<|\\le(?![a-z]))\s*[A-Za-z]\s*(<|\\le(?![a-z]))([^<>=]+)")
_BEYOND = re.compile(r"[A-Za-z]\s*(<|>|\\[lg]e(?![a-z]))([^<>=,]+)")
_TOKEN = re.compile(r"\\[{}]|\\[A-Za-z]+|\\.|\b(?:or|and)\b|.", re.DOTALL)


def respell(s: str) -> str:
    """One spelling for signs, spaces, thousands, fractions and symbols; \text is kept, since it may hold a unit."""
    s = (s if s.isascii() else _ascii(s)).strip()
    if m := _DELIMITED.fullmatch(s):
        s = m[1] or m[2]
    if len(dollars := _DOLLAR.findall(s)) > 1 and len(dollars) % 2 == 0:
        s = _DOLLAR.sub("", s)
    for pattern, new in _SPELLINGS:
        s = pattern.sub(new, s)
    s = s.strip()
    return s[:-1].rstrip() if s.endswith(".") and not s.endswith("..") else s


def _ascii(s: str) -> str:
    """Characters that stand for LaTeX, and the wide forms of Chinese text."""
    s = _RAISED.sub(lambda m: f"^{{{_normal(m[0])}}}", s)
    s = _LOWERED.sub(lambda m: f"_{{{_normal(m[0])}}}", s)
    s = _VULGAR.sub(lambda m: "\\frac{{{}}}{{{}}}".format(*_normal(m[0]).split("⁄")), s)
    return _normal(s.translate(_SYMBOLS))


def _normal(s: str) -> str:
    return unicodedata.normalize("NFKC", s)


def plain(s: str) -> str:
    r"""Without \text{} and its like; phrases as symbols."""
    s = re.sub(TEXT, r"\1", s).strip()
    return _PHRASES.get(s.lower(), s)


def rational(s: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number, repeating decimal or power of ten; else None."""
    body = s.lstrip("+- ")
    value = _unsigned(body.strip())
    return -value if value is not None and s[:len(s) - len(body)].count("-") % 2 else value


def _unsigned(s: str) -> Fraction | None:
    if re.fullmatch(_NUMBER, s):
        return _fraction(s)
    if re.fullmatch(r"\d{1,3}(?: \d{3})+", s):
        return Fraction(s.replace(" ", ""))
    if m := _FRACTION.fullmatch(s):
        top, bottom = (_fraction(x) for x in m.groups() if x)
        return top / bottom if bottom else None
    if m := _MIXED.fullmatch(s):
        part = _unsigned(m[2].strip())
        return Fraction(m[1]) + part if part is not None and 0 < part < 1 else None
    if m := _OVERLINED.fullmatch(s) or _CONTINUED.fullmatch(s):
        before, period = m[2], m[3] or m[4]
        whole = Fraction(int((m[1] or "0") + before), 10 ** len(before))
        return whole + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))
    if m := _SCIENTIFIC.fullmatch(s):
        return _fraction(m[1] or m[4] or "1") * Fraction(10) ** int(m[2] or m[3] or m[5])
    return None


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))


def split_name(s: str) -> tuple[str, str]:
    r"""("x", "3") from "x = 3", "f(x) = 3", "\text{Area} \approx 3", "x \in [0, 1]"; ("", s) where there is no name."""
    m = _IS.search(s)
    if m is None or not _NAME.fullmatch(name := s[:m.start()]) or _NO_NAME.search(name) or _IS.search(s, m.end()):
        return "", s
    return name.replace(" ", ""), s[m.end():].strip()


def unpack(s: str) -> str:
    """ "(x, y) = (1, 2)" as "x = 1, y = 2"; anything else as it is."""
    name, value = split_name(s)
    (kind, names), (value_kind, values) = parts(name), parts(value)
    if kind != "()" or value_kind != "()" or len(names) != len(values):
        return s
    return ", ".join(f"{n} = {v}" for n, v in zip(names, values, strict=True))


def for_parser(s: str) -> str:
    r"""What the LaTeX parser has no rule for: bare arguments ("\frac12", "\sqrt 3"), functions without a backslash,
    thousands, ".5"."""
    for pattern, new in _PARSER_SPELLINGS:
        s = pattern.sub(new, s)
    return s


def split_base(s: str) -> tuple[str, str]:
    """("1010", "2") from "1010_2"; the base is empty where none is named."""
    m = _BASE.fullmatch(s)
    return (m[1], _BASES.get(m[2], m[2])) if m else (s.replace(" ", ""), "")


def matrix(s: str) -> list[list[str]] | None:
    r"""Rows of cells of a pmatrix, bmatrix or array."""
    m = _MATRIX.fullmatch(s.strip())
    if m is None:
        return None
    rows = re.split(r"\\\\", m[1])
    return [[cell.strip() for cell in row.split("&")] for row in rows if row.strip()]


def as_interval(s: str) -> str:
    r"""An inequality in one variable as the interval it stands for: "0 \le x < 1" as "[0,1)", "x > 2" as "(2,\infty)";
    joined by "or", as a union. Anything else as it is."""
    pieces = re.split(r"\bor\b", s)
    if len(pieces) > 1:
        intervals = [as_interval(piece.strip()) for piece in pieces]
        return "\\cup".join(intervals) if all(i[-1:] in ")]" and i != p for i, p in zip(intervals, pieces, strict=True)
                                              ) else s
    if m := _BETWEEN.fullmatch(s):
        return f"{'(' if m[2] == '<' else '['}{m[1]},{m[4]}{')' if m[3] == '<' else ']'}"
    if m := _BEYOND.fullmatch(s):
        below = m[1] in ("<", "\\le")
        bracket = "[]"[below] if "e" in m[1] else "()"[below]
        return f"(-\\infty,{m[2]}{bracket}" if below else f"{bracket}{m[2]},\\infty)"
    return s


def parts(s: str) -> tuple[str, list[str]]:
    r"""What s is made of. Kinds: "()", "[)" and so on for tuples and intervals, in order; "{}" for a set, "," for a
    bare list ("1, 2", "1 and 2", "\pm 2") and "cup" for a union, in any order; "" for what is one piece."""
    s = s.strip()
    if rational(s) is not None:
        return "", [s]                                        # "1,234" is no list
    whole = _TOKEN.findall(s)
    if whole and whole[0] in ("(", "[", "\\{") and _closes(whole) == len(whole) - 1:
        kind = (whole[0] + whole[-1]).replace("\\", "")
        inside = "".join(whole[1:-1])
        pieces = _split(inside, {",", ";"})
        if kind == "{}":
            return kind, list(dict.fromkeys(_both_signs(pieces)))
        return parts(inside) if kind == "()" and len(pieces) == 1 else (kind, pieces)
    if len(pieces := _split(s, {"\\cup"})) > 1:
        return "cup", pieces
    pieces = _both_signs(_split(s, {",", ";", "or", "and"}))
    return (",", pieces) if len(pieces) > 1 else ("", pieces)


def _closes(tokens: list[str]) -> int:
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in ("(", "[", "{", "\\{")) - (token in (")", "]", "}", "\\}"))
        if depth == 0:
            return i
    return -1


def _split(s: str, separators: set[str]) -> list[str]:
    """At separators outside brackets. Among others with a space after them, a comma in "1,234" separates nothing."""
    s = re.sub(r",\s*(?=(?:and|or)\b)", " ", s)              # "1, 2, and 3"
    if ", " in s:
        s = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", s)
    pieces, depth = [""], 0
    for token in _TOKEN.findall(s):
        depth += (token in ("(", "[", "{", "\\{")) - (token in (")", "]", "}", "\\}"))
        if depth == 0 and token in separators:
            pieces.append("")
        else:
            pieces[-1] += token
    return [piece.strip() for piece in pieces]


def _both_signs(pieces: list[str]) -> list[str]:
    both: list[str] = []
    for piece in pieces:
        if "\\pm" in piece or "\\mp" in piece:
            both += [piece.replace("\\pm", "+").replace("\\mp", "-"), piece.replace("\\pm", "-").replace("\\mp", "+")]
        else:
            both.append(piece)
    return both
