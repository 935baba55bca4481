"""Texts as sets of word n-grams: what duplicates and contamination are told by.

A token is a word, a number, a LaTeX command or an operator, in lower case; layout (\\left, \\dfrac, $, punctuation)
is none. An n-gram is the 64-bit polynomial hash of n tokens in a row, so that a text is one numpy array.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_TOKEN = re.compile(r"\\?[^\W\d_]+|\d+|[-+*/^=<>%!|&]")
_COMMAND = re.compile(r"\\[a-z]+")
_LAYOUT = {"\\left", "\\right", "\\text", "\\mathrm", "\\displaystyle", "\\quad", "\\qquad", "\\textbf"}
_SAME = {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\leq": "\\le", "\\geq": "\\ge", "\\div": "/", "\\times": "*",
         "\\cdot": "*"}
_BASE = np.uint64(0x9E3779B97F4A7C15)


def tokens(text: str) -> list[str]:
    found = _TOKEN.findall(text.lower())
    return [_SAME.get(t, t) for t in found if t not in _LAYOUT]


def figures(text: str) -> list[str]:
    """Numbers, operators, brackets, LaTeX commands and truth values, sorted: where they differ, two problems that read
    alike are different."""
    found = sorted(w for w in tokens(text) if not w.isalpha() or w in ("true", "false"))
    return ["("] * text.count("(") + found


def compact(text: str) -> str:
    """What is left of a text when only its layout and sentence punctuation may differ. Brackets stay."""
    text = _COMMAND.sub(lambda m: "" if m[0] in _LAYOUT else _SAME.get(m[0], m[0]), text.lower())
    return re.sub(r"\\[\[\]()!,;: ]|[\s$.,;:!?~]", "", text)


def ngrams(words: list[str], n: int) -> Hashes:
    """uint64 hashes of the n-grams, distinct and sorted; of a shorter text, the hash of all of it."""
    codes = np.fromiter(map(_code, words), np.uint64, len(words))
    n = min(n, len(words))
    if not n:
        return codes
    total = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):
        total = total * _BASE + codes[i:len(words) - n + 1 + i]
    total ^= total >> np.uint64(29)
    return np.unique(total * _BASE)


@lru_cache(1 << 16)
def _code(word: str) -> int:
    return zlib.crc32(word.encode()) + 1
