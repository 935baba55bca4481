r"""The unit of an answer: what stands around a number and does not change it.

Known units have a symbol and are told apart ("5 km" is not "5 m"). Other words after a number are taken for what is
counted ("12 apples"), unless they change the number ("5 squared", "5 lakh", "5 or so"): those are left in place, and
algebra will not read them.
"""

from __future__ import annotations

import re

from srpo.rewards.answers import TEXT, plain, rational

_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10 ** 6, "billion": 10 ** 9, "trillion": 10 ** 12}

_SYNONYMS = """mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre; in inch inche;
ft foot feet; yd yard; mi mile; mg milligram; g gram; kg kilogram kilo; lb pound £; oz ounce; ton; s sec second;
min minute; h hr hour; day; week; month; yr year; ml milliliter millilitre; l liter litre; gal gallon; cup; $ dollar usd
buck; cent ¢; € euro eur; ¥ yen; ^\\circ degree; rad radian; % percent; mi/h mph; km/h kph kmh; am a.m; pm p.m"""
_UNITS = {name: names.split()[0] for names in _SYNONYMS.split(";") for name in names.split()}
_POWER = re.compile(r"(.*?)\s*\^\s*\{?\s*([23])\s*\}?\s*", re.DOTALL)
_SQUARE = re.compile(r"(square|sq|cubic|cu)\.?\s+(.*)")
_CURRENCY = re.compile(r"([-+]?)\s*(?:\\(?=\$))?([$£€¥])\s*(.+)")
_SIGN_AFTER = re.compile(r"(.*[^\s\\])\s*(?:\\?(%)|\^\s*\{?\s*(\\circ)\s*\}?"
                         r"\s*(?:([CF])|\\(?:text|mathrm)\s*\{\s*([CF])\s*\})?|\\?([$£€¥¢]))", re.DOTALL)
_TEXT_AFTER = re.compile(rf"(.*[^\s\\_^=+*/(<>-])(?:\s|\\ )*{TEXT}\s*(\^\s*\{{?\s*[23]\s*\}}?)?", re.DOTALL)
_WORDS_AFTER = re.compile(r"([^A-Za-z]*[^A-Za-z\s]|.*\})(\s*)([A-Za-z][A-Za-z ./]*(?:\^\s*\{?\s*[23]\s*\}?)?)",
                          re.DOTALL)
_HAN_AFTER = re.compile(r"([^\u4e00-\u9fff]*?)\s*([万亿]?)([\u4e00-\u9fff]*)")
_HAN = """元:¥ 厘米:cm 米:m 千米:km 公里:km 克:g 千克:kg 公斤:kg 升:l 毫升:ml 小时:h 分钟:min
秒:s 天:day 个月:month 年:yr 度:^\\circ 平方厘米:cm^2 平方米:m^2 立方厘米:cm^3 立方米:m^3
个: 人: 名: 只: 本: 棵: 条: 张: 块: 件: 种: 次: 位: 岁: 辆: 支: 组: :"""
_HAN_UNITS = dict(pair.split(":") for pair in _HAN.split())
_CHANGING = """if or not and but wrong sin cos tan cot sec csc ln log exp mod modulo div sqrt pi choose squared cubed
    factorial plus minus times over point base negative positive remainder half halves third thirds quarter quarters
    fourth fourths fifths sixths sevenths eighths ninths tenth tenths hundredth hundredths thousandth thousandths
    millionths hundred thousand million billion trillion dozen score gross lakh crore k b mn bn zero one two three four
    five six seven eight nine ten more most less least fewer greater than when unless except without nope false to
    out ish"""
_NO_UNIT = set(_CHANGING.split())
"""Words after a number that change it, or take it back."""
_ORDINAL = {"st", "nd", "rd", "th"}
_NO_MEANING = {"of", "the", "a", "an", "in", "is", "are", "left", "total", "per"}

_DIVIDED = re.compile(r"\}\s*/\s*\\(?:text|mathrm)\s*\{")         # "\text{ m}/\text{s}"
_WHOLE = re.compile(TEXT)
_CLOCK = re.compile(r"\d{1,2}:\d\d")


def split_unit(s: str) -> tuple[str, str, int]:
    r"""(value, unit, factor): "\$3", "3 cm^2", "30^\circ", "3\text{ million people}". The unit is a known one's
    symbol, or the words that are there; "million" and its like are the factor."""
    s = _DIVIDED.sub("/", m[1] if (m := _WHOLE.fullmatch(s)) else s)
    if m := _CURRENCY.fullmatch(s):
        value, _, factor = split_unit(m[1] + m[3])
        return value, _UNITS[m[2]], factor
    if m := _SIGN_AFTER.fullmatch(s):
        if m[3] and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])|,", m[1]):
            return s, "", 1                                   # the angle of a function, or a list of angles
        scale = (m[4] or m[5] or "").lower()
        return m[1], f"^\\circ {scale}".strip() if m[3] else _UNITS[m[2] or m[6]], 1
    if (m := _HAN_AFTER.fullmatch(plain(s))) and (m[2] or m[3]) and m[3] in _HAN_UNITS and rational(m[1]) is not None:
        return m[1], _HAN_UNITS[m[3]], {"万": 10 ** 4, "亿": 10 ** 8}.get(m[2], 1)
    if (m := _TEXT_AFTER.fullmatch(s)) and (unit := _measure(m[2] + (m[3] or ""))):
        return m[1], *unit
    if (m := _WORDS_AFTER.fullmatch(s)) and (rational(m[1].strip()) is not None or _CLOCK.fullmatch(m[1].strip())):
        apart = m[2] or len(m[3].rstrip("^{} 23")) > 1 and (m[3] in _ORDINAL or _unit(m[3]))
        if apart and (unit := _measure(m[3])):                # "5 m" is a length, "5m" a product
            return m[1].strip(), *unit
    return s, "", 1


def units_differ(a: str, b: str) -> bool:
    """Two units of which neither says more than the other: "mi" and "h", but not "balls" and "red balls"."""
    first, second = set(a.split()), set(b.split())
    return bool(first and second) and not (first <= second or second <= first)


def _measure(text: str) -> tuple[str, int] | None:
    """The unit and factor in what follows a number; None where it is not only a unit."""
    words, factor = text.strip().split(), 1
    while words and words[0].lower() in _SCALES:
        factor *= _SCALES[words.pop(0).lower()]
    rest = " ".join(words)
    if not rest or (unit := _unit(rest)):
        return (unit if rest else ""), factor
    bare, power = (m[1], f"^{m[2]}") if (m := _POWER.fullmatch(rest)) else (rest, "")
    names = re.findall(r"[^\W\d_]+", bare.lower())
    if re.search(r"[\d,;:=<>+\u4e00-\u9fff]", bare) or _NO_UNIT & set(names) or max(map(len, names), default=0) < 2:
        return None
    return " ".join(_symbol(name) + power for name in names if name not in _NO_MEANING), factor


def _unit(words: str) -> str:
    """The symbol of a known unit, "cm^2" and "km/h" included; else nothing."""
    if words.strip() in ("K", "M", "B"):
        return ""
    words, power = words.strip().strip(".").lower(), ""
    if m := _POWER.fullmatch(words):
        words, power = m[1], f"^{m[2]}"
    if m := _SQUARE.fullmatch(words):
        words, power = m[2], "^2" if m[1].startswith("s") else "^3"
    names = [_UNITS.get(w) or _UNITS.get(w.removesuffix("s")) for w in re.split(r"\s*/\s*|\s+per\s+|\s+an?\s+", words)]
    return "/".join(n for n in names if n) + power if all(names) else ""


def _symbol(name: str) -> str:
    return _unit(name) or {"celsius": "c", "fahrenheit": "f"}.get(name, name.removesuffix("s"))
