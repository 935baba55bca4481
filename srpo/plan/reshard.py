"""Bytes that vLLM's layout needs on each rank beyond what the trainer's left there: the lower bound of a sync.

The same as srpo/rollout/reshard.py's plan comes to, tensor by tensor and move by move, but counted by kinds of tensors:
a layout search asks hundreds of times. A test compares the two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from srpo.plan.job import Job
from srpo.plan.shape import Shape

Layout = tuple[int, int]
"""Tensor-parallel and pipeline size."""
Span = tuple[int, int]
"""Begin and end, along the split axis or in layers."""


@dataclass(frozen=True)
class Kind:
    """Tensors of one shape and place in a layer, or one tensor outside the layers."""

    length: int
    """Along the axis that tensor parallelism splits."""
    line: int
    """Elements of one step along it."""
    real: int
    """Length without the vocabulary's padding."""
    parameter: str
    """Tensors of one parameter are aliased together or not at all."""
    rows: bool
    """Split by rows: a part of the trainer's parameter can be vLLM's."""
    split: int
    """Most shares: more ranks hold copies."""


@dataclass(frozen=True)
class Sync:
    """One entry for each rank of a block of lcm(trainer's ranks, vLLM's ranks): the layouts repeat from there."""

    needed: list[int]
    """Bytes received, at least."""
    owned: list[int]
    """Bytes of vLLM's parameters that are not the trainer's storage."""


def sync(job: Job) -> Sync:
    """What moves after an update."""
    theirs = (job.config.rollout_tensor, job.config.rollout.pipeline)
    return _sync(job.shape, (job.tensor, job.pipeline), theirs, job.itemsize)


@functools.cache
def _sync(shape: Shape, mine: Layout, theirs: Layout, itemsize: int) -> Sync:
    if mine == theirs:
        return Sync([0], [0])
    ranks = math.lcm(math.prod(mine), math.prod(theirs))
    found = [_rank(shape, r, mine, theirs) for r in range(ranks)]
    return Sync([itemsize * needed for needed, _ in found], [itemsize * owned for _, owned in found])


def _rank(shape: Shape, rank: int, mine: Layout, theirs: Layout) -> tuple[int, int]:
    """Elements needed and owned."""
    needed = owned = 0
    for held, wanted, kinds in _parts(shape, rank, mine, theirs):
        both = max(0, min(held[1], wanted[1]) - max(held[0], wanted[0]))
        count = wanted[1] - wanted[0]
        for parameter in dict.fromkeys(k.parameter for k in kinds):
            some = [k for k in kinds if k.parameter == parameter]
            spans = [(_share(k, rank, mine[0]), _share(k, rank, theirs[0])) for k in some]
            aliased = both if _is_piece(some, spans) else 0
            for k, (have, want) in zip(some, spans, strict=True):
                begin, end = min(want[0], k.real), min(want[1], k.real)
                local = max(0, min(have[1], end) - max(have[0], begin))
                needed += (count - both) * (end - begin) * k.line + (both - aliased) * (end - begin - local) * k.line
                owned += (count - aliased) * (want[1] - want[0]) * k.line
    return needed, owned


def _is_piece(kinds: list[Kind], spans: list[tuple[Span, Span]]) -> bool:
    """Whether vLLM's parameter is a piece of the trainer's: each of its tensors lies in this rank's share, and all of
    them equally far from where the trainer's parameter begins."""
    shifts = set()
    ours = theirs = 0
    for k, (have, want) in zip(kinds, spans, strict=True):
        if want[0] < have[0] or have[1] < want[1] or not (k.rows or have == want):
            return False
        shifts.add(ours + want[0] - have[0] - theirs)
        ours += have[1] - have[0]
        theirs += want[1] - want[0]
    return len(shifts) == 1


def _parts(shape: Shape, rank: int, mine: Layout, theirs: Layout) -> Iterator[tuple[Span, Span, list[Kind]]]:
    """(layers that the rank holds as the trainer's, layers that it needs for vLLM, the kinds of tensors in each)."""
    h, d = shape.hidden, shape.head_dim
    qkv = [("q", shape.query, shape.heads), ("k", shape.kv, shape.kv_heads), ("v", shape.kv, shape.kv_heads)]
    kinds = [Kind(rows, h, rows, "qkv", True, heads) for _, rows, heads in qkv]
    kinds += [Kind(rows, 1, rows, "bias", True, heads) for _, rows, heads in qkv] if shape.bias else []
    kinds += [Kind(d, 1, d, f"{n} norm", True, 1) for n in "qk"] if shape.qk_norm else []
    kinds += [Kind(shape.query, h, shape.query, "o", False, shape.heads)]
    kinds += [Kind(shape.ffn, h, shape.ffn, "gate and up", True, shape.ffn)] * 2
    kinds += [Kind(shape.ffn, h, shape.ffn, "down", False, shape.ffn)]
    kinds += [Kind(h, 1, h, f"norm {n}", True, 1) for n in (1, 2)]

    def stage(of: Layout) -> int:
        return rank // of[0] % of[1]

    def layers(of: Layout) -> Span:
        each = shape.layers // of[1]
        return stage(of) * each, (stage(of) + 1) * each

    def only(held: bool, wanted: bool) -> tuple[Span, Span]:
        return (0, int(held)), (0, int(wanted))

    yield layers(mine), layers(theirs), kinds
    vocabulary = Kind(shape.vocab, h, shape.real_vocab, "vocabulary", True, shape.vocab)
    first = stage(mine) == 0, stage(theirs) == 0
    last = stage(mine) == mine[1] - 1, stage(theirs) == theirs[1] - 1
    yield *only(*last), [Kind(h, 1, h, "norm", True, 1)]
    if not shape.tied:
        yield *only(*first), [vocabulary]
        yield *only(*last), [vocabulary]
    else:  # the last stages have a copy, which serves as well
        yield *only(first[0] or last[0], first[1] or last[1]), [vocabulary]


def _share(kind: Kind, rank: int, tensor: int) -> Span:
    shares = min(tensor, kind.split)
    size = kind.length // shares
    begin = rank % tensor * shares // tensor * size
    return begin, begin + size
