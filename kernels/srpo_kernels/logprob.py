"""Log-probabilities and entropies of given tokens, over a vocabulary that may be split.

Each row of logits is reduced to four statistics (statistics.py, csrc/ops.cpp); here they are merged across the
vocabulary's shards, which is all that tensor parallelism takes: one all_gather of 4 numbers a row, merged in rank
order and so deterministic, and no collective in the backward pass, where autograd through the merge gives each rank
its shard's part.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from srpo_kernels.dispatch import Backend, implementation


@overload
def token_logprobs(
    logits: Tensor, tokens: Tensor, *, temperature: float = 1.0,
    return_entropy: Literal[False] = False, mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None, inplace_backward: bool = False, vocab_size: int | None = None,
    backend: Backend | None = None,
) -> Tensor: ...
@overload
def token_logprobs(
    logits: Tensor, tokens: Tensor, *, temperature: float = 1.0,
    return_entropy: Literal[True], mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None, inplace_backward: bool = False, vocab_size: int | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]: ...
def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    return_entropy: bool = False,
    mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    inplace_backward: bool = False,
    vocab_size: int | None = None,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[token] and, if asked, the entropy of that distribution. Differentiable in both.

    Args:
        logits: [N, V] float32, bfloat16, float16 or float64; any row stride.
        tokens: [N] int64; anything where masked.
        mask: [N] bool; False rows give 0 and get a gradient of exactly 0, even if they hold NaN or inf.
        group: tensor-parallel process group: V is then this rank's shard, and rank r owns columns [r * V, (r + 1) * V).
        inplace_backward: the backward pass writes the gradient over the logits. Only for logits that nobody reads
            afterwards; autograd raises if another operation had saved them for its own backward pass.
        vocab_size: true size of the (global) vocabulary; later columns are padding, whatever they hold.
        backend: "triton", "cpp" or "torch" instead of the one chosen by device and dtype; see status().

    Returns:
        logprobs [N], and entropy [N] in nats with return_entropy: float32, or float64 for float64 logits. Narrower
        inputs are widened first. A row with a NaN, an inf, or nothing but -inf gives NaN.

    Raises:
        ValueError: for shapes or options that do not fit.
        IndexError: for an unmasked token outside the vocabulary; on other devices and under torch.compile a
            RuntimeError, when the device gets there.
    """
    owner = logits if logits._base is None else logits._base
    if inplace_backward and owner.is_leaf and owner.requires_grad:
        raise ValueError("inplace_backward would overwrite a leaf tensor: pass the model's output, or a clone")
    local, columns = shard(logits.shape, tokens, mask, temperature, group, vocab_size)
    statistics = implementation(logits, backend).statistics(logits, local, temperature, columns, inplace_backward)
    logprobs, entropy = merge(statistics, mask, temperature, group)
    return (logprobs, entropy) if return_entropy else logprobs


def shard(
    shape: tuple[int, ...],
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    group: dist.ProcessGroup | None,
    vocab_size: int | None,
) -> tuple[Tensor, int]:
    """For logits of this shape: tokens counted from this rank's first column, and how many of its columns are real."""
    if len(shape) != 2:
        raise ValueError(f"logits must be [N, V], got {tuple(shape)}")
    rows, width = shape
    rank, ranks = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    vocab = width * ranks if vocab_size is None else vocab_size
    if not 0 < vocab <= width * ranks:
        raise ValueError(f"vocab_size must be within the {width * ranks} columns of {ranks} ranks, got {vocab}")
    if tokens.shape != (rows,) or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be [{rows}] int64, one a row, got {tuple(tokens.shape)} {tokens.dtype}")
    if mask is not None and (mask.shape != (rows,) or mask.dtype != torch.bool):
        raise ValueError(f"mask must be [{rows}] bool, one a row, got {tuple(mask.shape)} {mask.dtype}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if mask is not None:
        tokens = tokens.masked_fill(~mask, 0)
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(((tokens >= 0) & (tokens < vocab)).all(), f"tokens must be within [0, {vocab})")
    elif rows:
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= vocab:
            raise IndexError(f"tokens must be within [0, {vocab}), got {low if low < 0 else high}")
    return tokens - rank * width, min(max(vocab - rank * width, 0), width)


def merge(
    statistics: Tensor, mask: Tensor | None, temperature: float, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N] from each rank's statistics [N, 4]."""
    shards = [statistics]
    if group is not None and dist.get_world_size(group) > 1:
        shards = [torch.empty_like(statistics) for _ in range(dist.get_world_size(group))]
        dist.all_gather(shards, statistics.detach().contiguous(), group=group)
        shards[dist.get_rank(group)] = statistics  # the one that carries a gradient
    merged = torch.stack(shards)
    if mask is not None:  # before any arithmetic, whose backward pass would make 0 * inf of a masked row
        neutral = torch.zeros_like(merged)
        neutral[..., 1] = 1
        merged = torch.where(mask[:, None], merged, neutral)
    maximum, total, term, target = merged.unbind(2)
    maximum = maximum.detach()
    peak = maximum.amax(0)
    shift = (maximum - peak) / temperature
    scale = shift.exp()
    # A shard of padding has maximum -inf and sum 0: bounded, its shift cannot make 0 * inf.
    term = ((term + total * shift.clamp(min=torch.finfo(shift.dtype).min)) * scale).sum(0)
    total = (total * scale).sum(0)
    log_total = total.log()
    # Not target - (peak + log_total): under a large common offset that sum loses log_total.
    logprobs = (target.sum(0) - peak) / temperature - log_total
    entropy = log_total - term / total
    return (logprobs, entropy) if mask is None else (logprobs.masked_fill(~mask, 0), entropy.masked_fill(~mask, 0))
