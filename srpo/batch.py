"""From sampled responses to packed micro-batches.

A micro-batch is one packed forward pass: whole sequences one after another (prompt and response), no padding between
them. Only hidden states that predict a response token are ever turned into logits, so prompts cost no vocabulary work.
Every rank holds all samples of the step and takes its own share; the split changes nothing in the gradient, since
losses are normalized by the step's global counts. How the work is divided is srpo/balance.py's.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from srpo.balance import assign, assign_within


@dataclass(frozen=True, eq=False)
class Sample:
    """One response. `rollout_logprobs` are vLLM's, of its own sampled tokens, at the sampling temperature: each by the
    policy that sampled the token. `stale`: how many of the first tokens were sampled in earlier steps. `finished`:
    False for a response that was interrupted and goes on in the next step."""

    prompt_tokens: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    rollout_logprobs: npt.NDArray[np.float32] | None = None
    truncated: bool = False
    stale: int = 0
    finished: bool = True

    @property
    def length(self) -> int:
        """Tokens that a pass reads, the prompt's too: the last one is predicted, never read."""
        return len(self.prompt_tokens) + len(self.tokens) - 1

    def state(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint; without the prompt, which the data give."""
        assert self.rollout_logprobs is not None
        arrays = (self.tokens.astype("<i4"), self.rollout_logprobs.astype("<f4"))
        tokens, logprobs = (base64.b64encode(array.tobytes()).decode() for array in arrays)
        return {"tokens": tokens, "logprobs": logprobs, "truncated": self.truncated, "stale": self.stale,
                "finished": self.finished}

    @classmethod
    def from_state(cls, prompt: npt.ArrayLike, state: dict[str, Any]) -> Sample:
        tokens = np.frombuffer(base64.b64decode(state["tokens"]), "<i4").astype(np.int32)
        logprobs = np.frombuffer(base64.b64decode(state["logprobs"]), "<f4").astype(np.float32)
        return cls(np.asarray(prompt, np.int32), tokens, logprobs, state["truncated"], state["stale"],
                   state["finished"])


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
    fresh: Tensor | None = None  # [N] bool: sampled by the policy of this step; None: all are

    def to(self, device: torch.device) -> MicroBatch:
        moved = {f.name: v.to(device) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(self, **moved)


def pack(samples: Sequence[Sample], advantages: Sequence[float], indices: Sequence[int], *, sequences: int,
         tokens: int | None = None, attention: float = 0.0, rank: int, ranks: int, multiple: int = 1
         ) -> list[MicroBatch]:
    """This data-parallel rank's micro-batches of `samples[i] for i in indices`.

    A micro-batch holds at most `sequences` of them, or, where given, sequences of at most `tokens` in all. What they
    cost is balanced, first over the ranks and then over a rank's micro-batches (a pipeline waits for the slowest):
    s + attention * s^2 for s tokens, see `attention_cost`. Every rank gets the same number of micro-batches, a masked
    dummy where the samples do not suffice (collectives stay in step). `advantages` is one number a sample; `multiple`:
    T is padded to a multiple of it. Raises ValueError for a sequence longer than `tokens`.
    """
    lengths = [samples[i].length for i in indices]
    costs = [s + attention * s * s for s in lengths]
    if tokens is None:
        each = max(1, -(-len(indices) // ranks))
        mine = assign(costs, ranks, limit=each)[rank]
        bins = assign([costs[i] for i in mine], -(-each // sequences), limit=sequences)
        bins = [[mine[j] for j in members] for members in bins]
    else:
        bins = assign_within(lengths, costs, ranks, tokens)[rank]
    return [_pack_one(samples, advantages, [indices[j] for j in members], multiple) for members in bins]


def attention_cost(hf: Any) -> float:
    """Of a sequence of s tokens: attention takes this times s as many operations as the matrices do.

    `hf`: the model's transformers config. Causal attention takes 2 q s^2 operations a layer, q being the width of all
    heads, and matrices of P weights 2 P s.
    """
    head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    query, key = head * hf.num_attention_heads, head * hf.num_key_value_heads
    weights = hf.hidden_size * (2 * query + 2 * key + 3 * hf.intermediate_size)
    return query / weights


def normalizer(samples: Sequence[Sample], indices: Sequence[int], aggregate: str, constant: int) -> int:
    """The loss's global denominator: response tokens, sequences, or sequences x constant length (Dr. GRPO)."""
    if aggregate == "token":
        return sum(len(samples[i].tokens) for i in indices)
    return len(indices) * (constant if aggregate == "constant" else 1)


def split(count: int, parts: int) -> list[range]:
    """`count` samples in `parts` consecutive, nearly equal pieces: the mini-batches of a step."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]


def _pack_one(samples: Sequence[Sample], advantages: Sequence[float], members: list[int], multiple: int) -> MicroBatch:
    if not members:
        return _dummy(multiple)
    chosen = [samples[i] for i in members]
    lengths = [s.length for s in chosen]
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
        rollout_logprobs=_tensor(logprobs, np.float32) if len(logprobs) == len(chosen) else None,
        fresh=_tensor([np.arange(len(s.tokens)) >= s.stale for s in chosen], np.bool_)
        if any(s.stale for s in chosen) else None)


def _dummy(multiple: int) -> MicroBatch:
    """A pass that contributes nothing: one masked row."""
    return MicroBatch(
        tokens=torch.zeros(multiple, dtype=torch.int64), position_ids=torch.arange(multiple),
        cu_seqlens=torch.tensor([0, multiple], dtype=torch.int32), rows=torch.tensor([0]), targets=torch.tensor([0]),
        cu_rows=torch.tensor([0, 1], dtype=torch.int32), advantages=torch.zeros(1),
        mask=torch.tensor([False]), sample_index=torch.tensor([-1]), rollout_logprobs=torch.zeros(1))


def _tensor(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False))
