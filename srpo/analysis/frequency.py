"""How often each pattern shows, how long such responses are and how often right, step by step over a run.

Steps are independent of each other, so that a large run's are divided among processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from srpo import samples
from srpo.analysis.detect import Batch, contains
from srpo.analysis.examples import Example, examples
from srpo.analysis.patterns import Patterns, any_of

COLUMNS = ("step", "stage", "prompt_id", "sample", "domain", "prompt", "response", "correct", "tokens")
ALONE = 100 << 20
"""Bytes of files up to which one process does it: others take a second to start."""


@dataclass(frozen=True, slots=True)
class Frequency:
    """Of the `responses` of a step and domain in which a pattern was looked for, `matching` show it. `tokens_` and
    `accuracy_` are means over those with it and those without it; None where there are none."""

    step: int
    stage: str
    domain: str
    pattern: str
    responses: int
    matching: int
    tokens_with: float | None
    tokens_without: float | None
    accuracy_with: float | None
    accuracy_without: float | None

    @property
    def share(self) -> float:
        return self.matching / self.responses


@dataclass(slots=True)
class Analysis:
    """`keywords`: by pattern, in how many responses each of its keywords is found."""

    frequencies: list[Frequency] = field(default_factory=list)
    keywords: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    examples: list[Example] = field(default_factory=list)


def frequencies(run: Path, patterns: Patterns, steps: range | None = None) -> list[Frequency]:
    """By step, domain and pattern, in this order; only where the pattern was looked for in a response at least. Raises
    UserError where there are no stored responses, or they cannot be read."""
    return analyse(run, patterns, steps=steps).frequencies


def analyse(run: Path, patterns: Patterns, shown: int = 0, steps: range | None = None) -> Analysis:
    """The same with counts by keyword, and with `shown` examples of each pattern, from all over the run."""
    stored = [step for step in samples.steps(run) if steps is None or step in steps]
    total = Analysis()
    for part in _parts(run, stored, partial(_step, run, patterns, shown)):
        total.frequencies += part.frequencies
        total.examples += part.examples
        for name, counts in part.keywords.items():
            total.keywords[name].update(counts)
    total.examples = _evenly(total.examples, patterns, shown)
    return total


def pooled(rows: Iterable[Frequency], *by: str) -> list[Frequency]:
    """Rows that agree in the fields `by` as one, which has the other fields of the first of them."""
    groups: dict[tuple[object, ...], list[Frequency]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in by), []).append(row)
    return [_pool(group) for group in groups.values()]


def wilson(matching: int, responses: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a share, at 95 % confidence (Wilson, 1927): right also near 0 and 1, where a normal one is not."""
    share, weight = matching / responses, z * z / responses
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / responses + weight / (4 * responses)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _parts(run: Path, steps: Sequence[int], work: partial[Analysis]) -> Iterator[Analysis]:
    processes = min(len(os.sched_getaffinity(0)), len(steps))
    if processes < 2 or samples.size(run) < ALONE:
        yield from map(work, steps)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, steps, chunksize=4)


def _step(run: Path, patterns: Patterns, shown: int, step: int) -> Analysis:
    part = Analysis()
    sums: dict[tuple[str, str], np.ndarray] = {}
    stage = ""
    for batch in samples.read(run, step, COLUMNS):
        texts = Batch(batch)
        stage = batch.column("stage")[0].as_py()
        tokens, correct = batch.column("tokens").to_numpy(), batch.column("correct").to_numpy()
        measures = np.stack([np.ones(texts.rows), tokens, correct])
        for name in patterns.patterns:
            considered, found = texts.considered(name, patterns), texts.shows(name, patterns)
            for domain in np.unique(texts.domains[considered]).tolist():
                own = considered & (texts.domains == domain)
                with_, without = measures[:, own & found].sum(1), measures[:, own & ~found].sum(1)
                sums[name, domain] = sums.get((name, domain), 0) + np.stack([with_, without])
            if patterns.patterns[name].keywords:
                with_keyword = texts.prose.filter(pa.array(found))
                part.keywords[name] += _keywords(with_keyword, patterns.expressions[name])
            part.examples += examples(batch, texts, name, patterns, found, shown)
    for domain in sorted({domain for _, domain in sums}):
        part.frequencies += [_frequency(step, stage, domain, name, sums[name, domain]) for name in patterns.patterns
                             if (name, domain) in sums]
    return part


def _keywords(texts: pa.Array, expressions: dict[str, str]) -> Counter[str]:
    """How many of the texts have each keyword. Halving the keywords costs less than asking for one after the other: a
    response has few of them."""
    if len(expressions) == 1 or not len(texts):
        return Counter({keyword: len(texts) for keyword in expressions if len(texts)})
    counts: Counter[str] = Counter()
    items = list(expressions.items())
    for half in (dict(items[:len(items) // 2]), dict(items[len(items) // 2:])):
        counts += _keywords(texts.filter(pa.array(contains(texts, any_of(half)))), half)
    return counts


def _frequency(step: int, stage: str, domain: str, pattern: str, sums: np.ndarray) -> Frequency:
    """From the [2, 3] sums of ones, tokens and correctness, of responses with the pattern and without it."""
    (with_, *of_with), (without, *of_without) = sums.tolist()
    tokens_with, accuracy_with = (x / with_ if with_ else None for x in of_with)
    tokens_without, accuracy_without = (x / without if without else None for x in of_without)
    return Frequency(step, stage, domain, pattern, int(with_ + without), int(with_), tokens_with, tokens_without,
                     accuracy_with, accuracy_without)


def _pool(rows: Sequence[Frequency]) -> Frequency:
    with_ = [row.matching for row in rows]
    without = [row.responses - row.matching for row in rows]
    return replace(rows[0], responses=sum(with_) + sum(without), matching=sum(with_),
                   tokens_with=_mean(rows, "tokens_with", with_), accuracy_with=_mean(rows, "accuracy_with", with_),
                   tokens_without=_mean(rows, "tokens_without", without),
                   accuracy_without=_mean(rows, "accuracy_without", without))


def _mean(rows: Sequence[Frequency], name: str, weights: Sequence[int]) -> float | None:
    total = sum(weights)
    values = map(attrgetter(name), rows)
    return sum(value * n for value, n in zip(values, weights, strict=True) if n) / total if total else None


def _evenly(found: Sequence[Example], patterns: Patterns, count: int) -> list[Example]:
    """`count` of each pattern, spread over the run."""
    chosen = []
    for name in patterns.patterns:
        own = [example for example in found if example.pattern == name]
        chosen += [own[(2 * i + 1) * len(own) // (2 * count)] for i in range(count)] if len(own) > count else own
    return chosen
