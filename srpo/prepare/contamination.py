"""Rows that are in a benchmark: word n-gram overlap with the benchmark's questions.

Contests repeat themselves ("where m and n are relatively prime positive integers. Find m+n"), so that one n-gram in
common, the usual rule, is a phrase in common. Here a row is contaminated when the n-grams it shares make up a good
part of the benchmark's question and it has all of that question's numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from srpo.prepare.overlap import Hashes, ngrams, tokens

N = 8
"""Words in a row. A shorter question is one n-gram of its own length."""
SHORT = 5
"""A question of fewer words is only ever met as a whole."""
SHARE = 0.5
"""Of the benchmark question's n-grams."""


class Benchmarks:
    """N-grams of benchmark questions. `texts` are (name, question)."""

    def __init__(self, texts: Iterable[tuple[str, str]]):
        self._names: list[str] = []
        self._numbers: list[Counter[str]] = []
        self._sizes: list[int] = []
        self._whole: dict[tuple[str, ...], str] = {}
        grams: dict[int, list[Hashes]] = defaultdict(list)
        owners: dict[int, list[int]] = defaultdict(list)
        for name, text in texts:
            words = tokens(text)
            if len(words) < SHORT:
                self._whole[tuple(words)] = name
                continue
            n = min(N, len(words))
            mine = ngrams(words, n)
            grams[n].append(mine)
            owners[n] += [len(self._names)] * len(mine)
            self._names.append(name)
            self._numbers.append(_numbers(words))
            self._sizes.append(len(mine))
        self._tables = {n: _sorted(np.concatenate(grams[n]), np.array(owners[n])) for n in grams}

    def find(self, text: str) -> str | None:
        """The name of the benchmark question that a text contains, if any."""
        words = tokens(text)
        shared: Counter[int] = Counter()
        for n, (grams, owners) in self._tables.items():
            if n <= len(words):
                mine = ngrams(words, n)
                first, last = np.searchsorted(grams, mine, "left"), np.searchsorted(grams, mine, "right")
                for i in np.flatnonzero(last > first):
                    shared.update(owners[first[i]:last[i]].tolist())
        numbers = _numbers(words)
        for i, n in shared.most_common():
            if n >= SHARE * self._sizes[i] and self._numbers[i] <= numbers:
                return self._names[i]
        return self._whole.get(tuple(words)) if words else None


def _sorted(grams: Hashes, owners: NDArray[np.int64]) -> tuple[Hashes, NDArray[np.int64]]:
    order = np.argsort(grams, kind="stable")
    return grams[order], owners[order]


def _numbers(words: list[str]) -> Counter[str]:
    return Counter(w for w in words if w.isdigit())
