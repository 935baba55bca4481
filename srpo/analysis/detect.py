"""Which responses of a batch show a pattern. Texts stay in Arrow as long as they can."""

from __future__ import annotations

import os
import re
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from srpo.analysis.patterns import Patterns, any_of
from srpo.rewards.language import mixing
from srpo.rewards.math import extract

Mask = npt.NDArray[np.bool_]

WINDOW = 48
"""Bytes of text that are compared in search of repetition: about nine English words, sixteen Chinese characters. A long
formula is shorter; what is as long and written twice was copied."""
LANGUAGE_BUDGET = 25_000
"""Characters of a batch whose language is asked for: it costs 0.5 ms a thousand, all else together a twentieth."""

_STATED = (r"(?:[=≈:：]|\b(?:is|are|get|gives|equals|so|thus|hence|therefore|total|answer)\b|boxed\{|是|为|得|有|共|约)"
           r"[,\s$\\(]{0,4}")
_PROGRAM = r"(?s)```.*?(?:```|\z)"


class Batch:
    """Stored responses: columns domain, prompt and response."""

    def __init__(self, batch: pa.RecordBatch):
        self.rows = batch.num_rows
        self.domains = np.array(batch.column("domain").to_pylist())
        self.texts = batch.column("response")
        self.prose = pc.if_else(pa.array(self.domains == "code"),
                                pc.replace_substring_regex(self.texts, _PROGRAM, "```"), self.texts)
        """Without the programs that answer code problems."""
        self._prompts = batch.column("prompt")
        self._has: dict[str, Mask] = {}

    def considered(self, name: str, patterns: Patterns) -> Mask:
        """The responses in which the pattern is looked for."""
        pattern = patterns.patterns[name]
        mask = np.isin(self.domains, pattern.domains) if pattern.domains else np.ones(self.rows, bool)
        if pattern.mixing:
            characters = int(pc.sum(pc.utf8_length(self.texts)).as_py() or 0)
            mask &= np.arange(self.rows) % -(-max(1, characters) // LANGUAGE_BUDGET) == 0
        return mask

    def shows(self, name: str, patterns: Patterns) -> Mask:
        """The responses that show it, among those considered."""
        pattern, found = patterns.patterns[name], self.considered(name, patterns)
        if name in patterns.expressions:
            found &= np.any([self.has(other, patterns) for other in pattern.after_answer or [name]], axis=0)
        places = np.flatnonzero(found)
        if pattern.after_answer:
            found[places] = self.after_answer(places, any_of(patterns.expressions[name]))
        elif pattern.repeated:
            found[places] = [repeated(self.texts[i].as_py()) >= pattern.repeated for i in places.tolist()]
        elif pattern.mixing:
            prompts = self.bare_prompts()
            found[places] = [mixing(prompts[i], self.texts[i].as_py()) >= pattern.mixing for i in places.tolist()]
        return found

    def has(self, name: str, patterns: Patterns) -> Mask:
        """The responses of any domain with one of the pattern's own keywords."""
        if name not in self._has:
            self._has[name] = contains(self.prose, any_of(patterns.expressions[name]))
        return self._has[name]

    def after_answer(self, places: npt.NDArray[np.int64], expression: str) -> Mask:
        """Whether the expression is found after the final answer was first stated, in the responses at `places`."""
        texts = self.prose.take(pa.array(places)).to_pylist()
        return contains(pa.array([text[answered(text):] for text in texts], pa.string()), expression)

    def bare_prompts(self) -> list[str]:
        """Prompts without what all of the batch begin and end with: the template, which has a language of its own. One
        that leaves no words of itself is taken whole."""
        prompts = self._prompts.to_pylist()
        if len(set(prompts)) < 2:
            return prompts
        head = len(os.path.commonprefix(prompts))
        rest = [prompt[head:] for prompt in prompts]
        tail = len(os.path.commonprefix([text[::-1] for text in rest]))
        rest = [text[:len(text) - tail] for text in rest]
        return [bare if sum(map(str.isalpha, bare)) >= 4 else prompt
                for bare, prompt in zip(rest, prompts, strict=True)]


def contains(texts: pa.Array, expression: str) -> Mask:
    return pc.match_substring_regex(texts, expression).to_numpy(zero_copy_only=False).astype(bool)


def answered(text: str) -> int:
    """Where the final answer has been stated for the first time; the text's end where there is no final answer.

    The answer is the graders'. It is stated where it follows a relation ("=", "is", "为", a box, ...), and where no
    digit or letter goes on from it.
    """
    answer = extract(text)
    stated = answer and re.search(_STATED + re.escape(answer) + r"(?!\.?[\w/^])", text, re.IGNORECASE)
    return stated.end() if stated else len(text)


def repeated(text: str) -> float:
    """Share, in [0, 1], of the text's windows of `WINDOW` bytes, after the first, that were there before."""
    hashes = np.sort(windows(text))  # ten times as fast as np.unique, which hashes
    return float(np.mean(hashes[1:] == hashes[:-1])) if len(hashes) > 1 else 0.0


def windows(text: str) -> npt.NDArray[np.uint64]:
    """A polynomial hash, modulo 2^64, of each window of the text's UTF-8 bytes."""
    data = np.frombuffer(text.encode(), np.uint8)
    if len(data) < WINDOW:
        return np.empty(0, np.uint64)
    powers, inverses = _powers(1 << len(data).bit_length())
    sums = np.cumsum(data * powers[:len(data)])
    sums[WINDOW:] -= sums[:-WINDOW].copy()
    return sums[WINDOW - 1:] * inverses[:len(data) - WINDOW + 1]


@cache
def _powers(count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Powers of an odd number and of its inverse, modulo 2^64."""
    base = 0x9E3779B97F4A7C15
    return tuple(np.cumprod(np.full(count, x, np.uint64), dtype=np.uint64)  # type: ignore[return-value]
                 for x in (base, pow(base, -1, 2**64)))
