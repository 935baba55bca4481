"""From sampled responses to packed micro-batches.

A micro-batch is one packed forward pass: whole sequences one after another (prompt and response), no padding between
them. Only hidden states that predict a response token are ever turned into logits, so prompts cost no vocabulary work.
Every rank holds all samples of the step and takes its own share; the split changes nothing in the gradient, since
losses are normalized by the step's global counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One response. `rollout_logprobs` are vLLM's, of its own sampled tokens, at the sampling temperature."""

    prompt_tokens: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    rollout_logprobs: npt.NDArray[np.float32] | None = None
    truncated: bool = False


@dataclass
class MicroBatch:
    """T packed tokens of S sequences, N of them response tokens to learn from.

    `rows[n]` is the position among the T whose hidden state predicts `targets[n]`. `cu_seqlens` covers all T
    (alignment padding is a sequence of its own); `cu_rows` bounds the response tokens of each of the S' real sequences.
    """

    tokens: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64
    cu_seqlens: Tensor  # [S+1] int32
    rows: Tensor  # [N] int64
    targets: Tensor  # [N] int64
    cu_rows: Tensor  # [S'+1] int32
    advantages: Tensor  # [N] float32
    mask: Tensor  # [N] bool
    sample_index: Tensor  # [S'] int64, into the step's samples
    rollout_logprobs: Tensor | None = None  # [N] float32
    old_logprobs: Tensor | None = None  # [N] float32
    ref_logprobs: Tensor | None = None  # [N] float32

    def to(self, device: torch.device) -> MicroBatch:
        moved = {f.name: v.to(device) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(self, **moved)


def pack(samples: Sequence[Sample], advantages: Sequence[float], indices: Sequence[int], *, sequences: int,
         rank: int, ranks: int, multiple: int = 1) -> list[MicroBatch]:
    """This data-parallel rank's micro-batches of `samples[i] for i in indices`.

    Sequences are dealt out by length, there and back, over all micro-batches of all ranks: equal counts, nearly equal
    token counts. Every rank gets the same number of micro-batches, a masked dummy where the samples do not suffice
    (collectives stay in step). `advantages` is one number a sample; `multiple`: T is padded to a multiple of it.
    """
    bins = ranks * -(-len(indices) // (ranks * sequences))
    order = sorted(indices, key=lambda i: (-_length(samples[i]), i))
    dealt: list[list[int]] = [[] for _ in range(bins)]
    for n, i in enumerate(order):
        lap, place = divmod(n, bins)
        dealt[place if lap % 2 == 0 else bins - 1 - place].append(i)
    return [_pack_one(samples, advantages, members, multiple) for members in dealt[rank::ranks]]


def normalizer(samples: Sequence[Sample], indices: Sequence[int], aggregate: str, constant: int) -> int:
    """The loss's global denominator: response tokens, sequences, or sequences x constant length (Dr. GRPO)."""
    if aggregate == "token":
        return sum(len(samples[i].tokens) for i in indices)
    return len(indices) * (constant if aggregate == "constant" else 1)


def split(count: int, parts: int) -> list[range]:
    """`count` samples in `parts` consecutive, nearly equal pieces: the mini-batches of a step."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]


def _length(sample: Sample) -> int:
    return len(sample.prompt_tokens) + len(sample.tokens) - 1  # the last token is predicted, never read


def _pack_one(samples: Sequence[Sample], advantages: Sequence[float], members: list[int], multiple: int) -> MicroBatch:
    if not members:
        return _dummy(multiple)
    chosen = [samples[i] for i in members]
    lengths = [_length(s) for s in chosen]
    responses = [len(s.tokens) for s in chosen]
    reads = [part for s in chosen for part in (s.prompt_tokens, s.tokens[:-1])]
    positions = [np.arange(n) for n in lengths]
    ends = np.cumsum(lengths)
    rows = [np.arange(end - n, end) for end, n in zip(ends, responses, strict=True)]
    cu_seqlens = [0, *ends.tolist()]
    if padding := -cu_seqlens[-1] % multiple:
        reads.append(np.zeros(padding, np.int32))
        positions.append(np.arange(padding))
        cu_seqlens.append(cu_seqlens[-1] + padding)
    logprobs = [s.rollout_logprobs for s in chosen if s.rollout_logprobs is not None]
    values = np.asarray([advantages[i] for i in members], np.float32)
    return MicroBatch(
        tokens=_tensor(reads, np.int64), position_ids=_tensor(positions, np.int64),
        cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32), rows=_tensor(rows, np.int64),
        targets=_tensor([s.tokens for s in chosen], np.int64),
        cu_rows=torch.tensor([0, *np.cumsum(responses).tolist()], dtype=torch.int32),
        advantages=torch.from_numpy(np.repeat(values, responses)),
        mask=torch.ones(sum(responses), dtype=torch.bool), sample_index=torch.tensor(members),
        rollout_logprobs=_tensor(logprobs, np.float32) if len(logprobs) == len(chosen) else None)


def _dummy(multiple: int) -> MicroBatch:
    """A pass that contributes nothing: one masked row."""
    return MicroBatch(
        tokens=torch.zeros(multiple, dtype=torch.int64), position_ids=torch.arange(multiple),
        cu_seqlens=torch.tensor([0, multiple], dtype=torch.int32), rows=torch.tensor([0]), targets=torch.tensor([0]),
        cu_rows=torch.tensor([0, 1], dtype=torch.int32), advantages=torch.zeros(1),
        mask=torch.tensor([False]), sample_index=torch.tensor([-1]), rollout_logprobs=torch.zeros(1))


def _tensor(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False))
