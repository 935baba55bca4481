"""Row statistics of logits in plain torch, in the form that the compiled backends compute them (see csrc/ops.cpp).

A row of logits x at temperature T is reduced to [m, s, t, x_y]: its maximum, sum exp((x - m) / T), sum of the same
times (x - m) / T, and the target's logit (0 where the target is not among the columns). Log-probability and entropy
follow, for one tensor or for the shards of a vocabulary. The maximum gets no gradient: nothing depends on its choice.

The functions are those of ops.Operators, but for the loss in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

name = "torch"
one_pass = False


def statistics(
    logits: Tensor, tokens: Tensor, temperature: float, columns: int, inplace_backward: bool = False
) -> Tensor:
    """Statistics [N, 4] of logits [N, V], float32 (float64 for float64); differentiable.

    tokens [N] count from this tensor's first column and may lie outside; columns: how many take part, from the first.
    """
    return _Statistics.apply(logits, tokens, temperature, columns, inplace_backward)


def statistics_backward(
    grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int
) -> Tensor:
    """Gradient [N, V] in the logits' dtype; exactly 0 for a row whose grad is 0."""
    out = torch.empty_like(logits)
    _backward_into(out, grad, statistics, logits, tokens, temperature, columns)
    return out


def statistics_backward_(
    grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int
) -> None:
    """The same, written over the logits."""
    _backward_into(logits, grad, statistics, logits, tokens, temperature, columns)


def scale_rows_(matrix: Tensor, scale: Tensor) -> None:
    """Multiply row n of matrix [N, V] by scale[n]."""
    matrix *= scale.unsqueeze(1)


def _exponentials(x: Tensor, maximum: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """exp(d) and d = (x - m) / T, with d = 0 where exp(d) is 0, so that 0 * -inf never forms."""
    d = (x - maximum.masked_fill(maximum == -torch.inf, 0).unsqueeze(1)) / temperature
    e = d.exp()
    return e, d.masked_fill(e == 0, 0)


def _widen(logits: Tensor, columns: int) -> Tensor:
    return logits[:, :columns].to(torch.promote_types(logits.dtype, torch.float32))


def _forward(logits: Tensor, tokens: Tensor, temperature: float, columns: int) -> Tensor:
    x = _widen(logits, columns)
    if columns == 0:
        empty = x.new_zeros(len(x), 4)
        empty[:, 0] = -torch.inf
        return empty
    maximum = x.amax(1)
    e, d = _exponentials(x, maximum, temperature)
    target = x.gather(1, tokens.clamp(0, columns - 1).unsqueeze(1)).squeeze(1)
    here = (tokens >= 0) & (tokens < columns)
    return torch.stack([maximum, e.sum(1), (e * d).sum(1), target.masked_fill(~here, 0)], 1)


def _backward_into(
    out: Tensor, grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int
) -> None:
    """out may be the logits."""
    out[:, columns:] = 0
    if columns == 0:
        return
    e, d = _exponentials(_widen(logits, columns), statistics[:, 0], temperature)
    _, grad_sum, grad_term, grad_target = grad.unsqueeze(2).unbind(1)
    dx = e * (grad_sum + grad_term * (1 + d)) / temperature
    here = ((tokens >= 0) & (tokens < columns)).unsqueeze(1)
    # Before rounding to the logits' dtype: p_y - 1 of a likely token would vanish after it.
    dx.scatter_add_(1, tokens.clamp(0, columns - 1).unsqueeze(1), grad_target * here)
    out[:, :columns] = dx.masked_fill((grad[:, 1:] == 0).all(1, keepdim=True), 0)


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, columns: int, inplace: bool) -> Tensor:
        result = _forward(logits, tokens, temperature, columns)
        ctx.save_for_backward(result, logits, tokens)
        ctx.options = (temperature, columns)
        ctx.inplace = inplace
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        result, logits, tokens = ctx.saved_tensors
        if not ctx.inplace:
            return statistics_backward(grad, result, logits, tokens, *ctx.options), None, None, None, None
        statistics_backward_(grad, result, logits, tokens, *ctx.options)
        return logits, None, None, None, None
