"""Log-probabilities and entropies of given tokens, from logits or hidden states, over a vocabulary that may be split.

Each row of logits is reduced to four statistics (statistics.py, csrc/ops.cpp); here they are merged across the
vocabulary's shards, which is all that tensor parallelism takes: one all_gather of 4 numbers a row, merged in rank
order and so deterministic, and no collective in the backward pass, where autograd through the merge gives each rank
its shard's part.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from srpo_kernels.dispatch import Backend, implementation

# Logits held at a time by the linear variants, in elements.
CHUNK = 2**26


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
        backend: "cpp" or "torch" instead of the one chosen by device and dtype.

    Returns:
        logprobs [N], and entropy [N] in nats with return_entropy: float32, or float64 for float64 logits. Narrower
        inputs are widened first. A row with a NaN, an inf, or nothing but -inf gives NaN.

    Raises:
        ValueError: for shapes or options that do not fit.
        IndexError: for an unmasked token outside the vocabulary (checked where it costs no synchronization, on CPU).
    """
    if inplace_backward and logits.requires_grad and logits.is_leaf:
        raise ValueError("inplace_backward would overwrite a leaf tensor: pass the model's output, or a clone")
    if logits.dim() != 2:
        raise ValueError(f"logits must be [N, V], got {tuple(logits.shape)}")
    local, columns = _shard(tokens, logits.shape[0], logits.shape[1], mask, temperature, group, vocab_size)
    module = implementation(logits, backend)
    statistics = module.differentiable(logits, local, temperature, columns, inplace_backward)
    logprobs, entropy = _merge(statistics, mask, temperature, group)
    return (logprobs, entropy) if return_entropy else logprobs


@overload
def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, *, temperature: float = 1.0,
    return_entropy: Literal[False] = False, mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None, vocab_size: int | None = None,
    backend: Backend | None = None,
) -> Tensor: ...
@overload
def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, *, temperature: float = 1.0,
    return_entropy: Literal[True], mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None, vocab_size: int | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]: ...
def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    return_entropy: bool = False,
    mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """token_logprobs of logits = hidden @ weight.T, without ever holding them: chunks of rows, recomputed backward.

    Args:
        hidden: [N, H], of weight's dtype, which is also that of the logits.
        weight: [V, H], this rank's shard with `group`. May be frozen. Its gradient is accumulated over chunks in
            float32.
        The others: see token_logprobs.

    With `group` the gradient of hidden is this rank's PARTIAL one, from its own columns. The caller sums it over the
    group: by Megatron's copy_to_tensor_model_parallel_region, or gather_from_sequence_parallel_region (with
    tensor_parallel_output_grad=True), before this call. That of weight is whole.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(f"hidden must be [N, H] and weight [V, H] of one dtype, got {tuple(hidden.shape)} "
                         f"{hidden.dtype} and {tuple(weight.shape)} {weight.dtype}")
    local, columns = _shard(tokens, hidden.shape[0], weight.shape[0], mask, temperature, group, vocab_size)
    module = implementation(hidden, backend)
    statistics = _LinearStatistics.apply(hidden, weight, local, temperature, columns, module)
    logprobs, entropy = _merge(statistics, mask, temperature, group)
    return (logprobs, entropy) if return_entropy else logprobs


def _shard(
    tokens: Tensor,
    rows: int,
    width: int,
    mask: Tensor | None,
    temperature: float,
    group: dist.ProcessGroup | None,
    vocab_size: int | None,
) -> tuple[Tensor, int]:
    """Tokens counted from this rank's first column, and the number of its columns that are not padding."""
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
    if tokens.device.type == "cpu" and rows and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= vocab:
            raise IndexError(f"tokens must be within [0, {vocab}), got {low if low < 0 else high}")
    return tokens - rank * width, min(max(vocab - rank * width, 0), width)


def _merge(
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
        merged = torch.where(mask[:, None], merged, merged.new_tensor([0, 1, 0, 0]))
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


class _LinearStatistics(torch.autograd.Function):
    """Row statistics of hidden @ weight.T."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, columns: int, module: ModuleType
    ) -> Tensor:
        ctx.rows = max(1, CHUNK // max(1, weight.shape[0]))
        ctx.options = (temperature, columns)
        ctx.module = module
        parts = [module.forward(h @ weight.T, y, temperature, columns)
                 for h, y in zip(hidden.split(ctx.rows), tokens.split(ctx.rows), strict=True)]
        statistics = torch.cat(parts)
        ctx.save_for_backward(hidden, weight, tokens, statistics)
        return statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, tokens, statistics = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), ctx.rows):
            rows = slice(start, start + ctx.rows)
            logits = hidden[rows] @ weight.T
            dlogits = ctx.module.backward(grad[rows], statistics[rows], logits, tokens[rows], *ctx.options, True)
            if grad_hidden is not None:
                torch.mm(dlogits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                # A row without gradient is left out whatever it holds: 0 * inf would spoil all of the weight's.
                h = hidden[rows].masked_fill((grad[rows, 1:] == 0).all(1, keepdim=True), 0)
                grad_weight += dlogits.T @ h
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None
