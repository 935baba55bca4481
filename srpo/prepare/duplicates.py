"""Rows that say the same: exactly (but for layout), or nearly (MinHash finds candidates, Jaccard decides).

Departs from the usual recipe in two ways. Two problems that differ in a number or an operator are different problems
however alike they read, and are kept. The same question with different answers is ambiguous: all its rows go.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from srpo.prepare.overlap import Hashes, compact, figures, ngrams, tokens

N = 3
"""Words of a shingle: problems are short, and one changed word changes N shingles."""
JACCARD = 0.7
BANDS, DEPTH = 16, 6
"""A pair at JACCARD shares one of 16 bands of 6 values with probability 0.87, at 0.8 0.99, at 0.4 0.06."""

_RANDOM = np.random.default_rng(20250420)
_A = _RANDOM.integers(1, 2**63, (BANDS * DEPTH, 1), np.uint64) * np.uint64(2) + np.uint64(1)
_B = _RANDOM.integers(0, 2**63, (BANDS * DEPTH, 1), np.uint64)


def exact(text: str) -> bytes:
    """16 bytes that two texts share when only their layout differs."""
    return hashlib.blake2b(compact(text).encode(), digest_size=16).digest()


def signature(text: str) -> bytes:
    """MinHash of a text's shingles, each band folded to one uint64."""
    shingles = ngrams(tokens(text), N)
    if not len(shingles):
        return np.zeros(BANDS, np.uint64).tobytes()
    # Multiply-shift; the high half of the product is the well-mixed one.
    least = ((_A * shingles + _B) >> np.uint64(32)).min(axis=1).reshape(BANDS, DEPTH)
    folded = np.zeros(BANDS, np.uint64)
    for i in range(DEPTH):
        folded = folded * np.uint64(0x9E3779B97F4A7C15) + least[:, i] + np.uint64(1)
    return folded.tobytes()


def find(texts: Sequence[str], signatures: Sequence[bytes], keys: Sequence[bytes], answers: Sequence[str],
         agree: Callable[[str, str], bool]) -> Iterator[tuple[int, str, int]]:
    """(row, rule, the row it repeats) of each row to drop; the first of several stays.

    `keys` and `signatures` come from `exact` and `signature`; `answers` are empty where there is nothing to compare,
    and `agree` says whether two that are spelled differently are equal.
    """
    gone: set[int] = set()
    same: dict[bytes, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        same[key].append(i)
    for first, *others in same.values():
        if all(answers[first] == answers[i] or agree(answers[i], answers[first]) for i in others):
            gone.update(others)
            yield from ((i, "exact_duplicate", first) for i in others)
        else:
            gone.update((first, *others))
            yield from ((i, "ambiguous", first if i != first else others[0]) for i in (first, *others))
    bands = np.frombuffer(b"".join(signatures), np.uint64).reshape(-1, BANDS)
    left = [i for i in range(len(texts)) if i not in gone]
    near: dict[int, set[int]] = defaultdict(set)
    for a, b in _candidates(bands[left]):
        near[left[b]].add(left[a])
    sets: dict[int, tuple[list[str], Hashes]] = {}
    for i in sorted(near):
        for j in sorted(near[i] - gone):
            if answers[i] == answers[j] and _alike(_set(i, texts, sets), _set(j, texts, sets)):
                gone.add(i)
                yield i, "near_duplicate", j
                break


def _candidates(bands: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) that agree in a band: each row with the few before it that agree."""
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        ranked = band[order]
        for step in range(1, 9):                              # of a long run of equals, the nearest are enough
            for at in np.flatnonzero(ranked[step:] == ranked[:-step]):
                yield int(order[at]), int(order[at + step])


def _set(i: int, texts: Sequence[str], sets: dict[int, tuple[list[str], Hashes]]) -> tuple[list[str], Hashes]:
    if i not in sets:
        sets[i] = figures(texts[i]), ngrams(tokens(texts[i]), N)
    return sets[i]


def _alike(a: tuple[list[str], Hashes], b: tuple[list[str], Hashes]) -> bool:
    if a[0] != b[0]:
        return False
    common = len(np.intersect1d(a[1], b[1], assume_unique=True))
    return common >= JACCARD * (len(a[1]) + len(b[1]) - common)
