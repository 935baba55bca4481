"""Where in a response a pattern shows: the text around it, for people to judge the pattern by."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srpo.analysis.detect import WINDOW, Batch, Mask, answered, windows
from srpo.analysis.patterns import Patterns, any_of
from srpo.rewards.language import mixing

AROUND = 120
"""Characters shown on either side."""
_SENTENCE = re.compile(r"[^.!?;:。！？；：\n]+")


@dataclass(frozen=True, slots=True)
class Example:
    """`match` is what the pattern found in a response, `before` and `after` the text around it."""

    pattern: str
    step: int
    stage: str
    domain: str
    prompt_id: str
    sample: int
    correct: float
    tokens: int
    before: str
    match: str
    after: str


def examples(batch: pa.RecordBatch, texts: Batch, name: str, patterns: Patterns, found: Mask,
             count: int) -> list[Example]:
    """Of the first `count` of a batch's responses that show the pattern."""
    shown = []
    for i in np.flatnonzero(found)[:count].tolist():
        row = {key: batch.column(key)[i].as_py()
               for key in ("step", "stage", "domain", "prompt_id", "sample", "correct", "tokens")}
        text = (texts.prose if name in patterns.expressions else texts.texts)[i].as_py()
        start, end = _place(text, texts, i, name, patterns)
        shown.append(Example(name, **row, before=text[max(0, start - AROUND):start], match=text[start:end],
                             after=text[end:end + AROUND]))
    return shown


def _place(text: str, texts: Batch, i: int, name: str, patterns: Patterns) -> tuple[int, int]:
    """Start and end, in characters, of the first place where the response shows the pattern; of what it repeats most
    often or of the sentence most foreign, where that is the pattern."""
    pattern = patterns.patterns[name]
    if pattern.repeated:
        hashes = windows(text)
        values, counts = np.unique(hashes, return_counts=True)
        again = int(np.flatnonzero(hashes == values[counts.argmax()])[1])
        return _characters(text, again, again + WINDOW)
    if pattern.mixing:
        prompt = texts.bare_prompts()[i]
        foreign = max(_SENTENCE.finditer(text), key=lambda m: len(m[0]) * mixing(prompt, m[0]))
        return foreign.span()
    begin = answered(text) if pattern.after_answer else 0
    span = pc.extract_regex_span(pa.array([text[begin:]]), f"(?P<m>{any_of(patterns.expressions[name])})")
    offset, length = span.field("m")[0].as_py()
    start, end = _characters(text[begin:], offset, offset + length)
    return begin + start, begin + end


def _characters(text: str, start: int, end: int) -> tuple[int, int]:
    """Offsets in UTF-8 bytes as offsets in characters."""
    data = text.encode()
    return len(data[:start].decode(errors="ignore")), len(data[:end].decode(errors="ignore"))
