"""From sampled responses to packed micro-batches.

A micro-batch is one packed forward pass: whole sequences one after another (prompt and response), no padding between
them. Only hidden states that predict a response token are ever turned into logits, so prompts cost no vocabulary work.
Every rank holds all samples of the step and takes its own share; the split changes nothing in the gradient, since
losses are normalized by the step's global counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One response. `rollout_logprobs` are vLLM's, of its own sampled tokens, at the sampling temperature."""

    prompt_tokens: list[int]
    tokens: list[int]
    rollout_logprobs: list[float] | None = None
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
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    row_advantages: list[float] = []
    logprobs: list[float] = []
    cu_seqlens, cu_rows = [0], [0]
    for i in members:
        s = samples[i]
        first = len(tokens) + len(s.prompt_tokens) - 1
        tokens += s.prompt_tokens + s.tokens[:-1]
        positions += range(_length(s))
        rows += range(first, first + len(s.tokens))
        targets += s.tokens
        row_advantages += [advantages[i]] * len(s.tokens)
        logprobs += s.rollout_logprobs or []
        cu_seqlens.append(len(tokens))
        cu_rows.append(len(rows))
    masked = not rows
    if padding := -len(tokens) % multiple or (multiple if masked else 0):
        tokens += [0] * padding
        positions += range(padding)
        cu_seqlens.append(len(tokens))
    if masked:
        rows, targets, row_advantages, logprobs, cu_rows = [0], [0], [0.0], [0.0], [0, 1]
    has_logprobs = len(logprobs) == len(rows)
    return MicroBatch(
        tokens=torch.tensor(tokens), position_ids=torch.tensor(positions),
        cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32), rows=torch.tensor(rows), targets=torch.tensor(targets),
        cu_rows=torch.tensor(cu_rows, dtype=torch.int32), advantages=torch.tensor(row_advantages, dtype=torch.float32),
        mask=torch.full((len(rows),), not masked),
        sample_index=torch.tensor(members if members else [-1]),
        rollout_logprobs=torch.tensor(logprobs, dtype=torch.float32) if has_logprobs else None)
