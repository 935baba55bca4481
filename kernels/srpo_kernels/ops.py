"""The operators that the compiled backends implement, registered with torch.compile and autograd.

There are two sets of them with one schema: `srpo` (C++: csrc/) and `srpo_triton` (triton_ops.py). statistics.py says
what the row statistics are; it is the same interface in plain torch, without the one-pass loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LOSS_INPUTS = (
    "Tensor tokens, Tensor advantages, Tensor weights, Tensor? old_logprobs, Tensor? ref_logprobs, "
    "Tensor? rollout_logprobs, float temperature, int columns, float clip_low, float clip_high, float dual_clip, "
    "bool cispo, int kl, float kl_coef, float entropy_coef, float tis_cap")

SCHEMAS = {
    "logprob_statistics":
        "(Tensor logits, Tensor tokens, float temperature, int columns, bool inplace_backward=False) -> Tensor",
    "logprob_statistics_backward":
        "(Tensor grad, Tensor statistics, Tensor logits, Tensor tokens, float temperature, int columns) -> Tensor",
    "logprob_statistics_backward_":
        "(Tensor grad, Tensor statistics, Tensor(a!) logits, Tensor tokens, float temperature, int columns) -> ()",
    "policy_loss_rows": f"(Tensor logits, {_LOSS_INPUTS}, bool needs_grad) -> (Tensor loss, Tensor rows, Tensor grad)",
    "policy_loss_rows_": f"(Tensor(a!) logits, {_LOSS_INPUTS}) -> (Tensor loss, Tensor rows)",
    "scale_rows_": "(Tensor(a!) matrix, Tensor scale) -> ()",
}

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Operators:
    """The operators of one namespace, as plain attributes."""

    def __init__(self, namespace: str, *, one_pass: bool) -> None:
        """one_pass: policy_loss_rows is implemented for the device too, not the statistics alone."""
        ops = getattr(torch.ops, namespace)
        self.name = {"srpo": "cpp", "srpo_triton": "triton"}[namespace]
        self.one_pass = one_pass
        self.statistics = ops.logprob_statistics
        self.statistics_backward = ops.logprob_statistics_backward
        self.statistics_backward_ = ops.logprob_statistics_backward_
        self.policy_loss_rows = ops.policy_loss_rows
        self.policy_loss_rows_ = ops.policy_loss_rows_
        self.scale_rows_ = ops.scale_rows_


def register(namespace: str) -> None:
    """Fake implementations and derivatives of a namespace's operators, whose schemas are already defined."""
    ops = getattr(torch.ops, namespace)

    @torch.library.register_fake(f"{namespace}::logprob_statistics")
    def _(logits: Tensor, *_: Any) -> Tensor:
        return logits.new_empty((logits.shape[0], 4), dtype=torch.float32)

    @torch.library.register_fake(f"{namespace}::logprob_statistics_backward")
    def _(grad: Tensor, statistics: Tensor, logits: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(logits, memory_format=torch.contiguous_format)

    @torch.library.register_fake(f"{namespace}::policy_loss_rows")
    def _(logits: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = logits.shape
        loss, values = _loss_rows(logits)
        return loss, values, logits.new_empty((rows if options[-1] else 0, columns))

    @torch.library.register_fake(f"{namespace}::policy_loss_rows_")
    def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return _loss_rows(logits)

    for name in ("logprob_statistics_backward_", "scale_rows_"):
        torch.library.register_fake(f"{namespace}::{name}", lambda *_: None)

    def statistics_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, tokens, ctx.temperature, ctx.columns, ctx.inplace = inputs
        ctx.save_for_backward(output, logits, tokens)

    def statistics_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("srpo_kernels: gradients of gradients are not supported; create_graph must be False")
        statistics, logits, tokens = ctx.saved_tensors
        arguments = (grad, statistics, logits, tokens, ctx.temperature, ctx.columns)
        if not ctx.inplace:
            return ops.logprob_statistics_backward(*arguments), None, None, None, None
        ops.logprob_statistics_backward_(*arguments)
        return logits, None, None, None, None

    torch.library.register_autograd(
        f"{namespace}::logprob_statistics", statistics_backward, setup_context=statistics_context)

    def loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, rows, grad = output
        ctx.set_materialize_grads(False)  # or the gradient of `grad` would be another [N, V] of zeros
        ctx.mark_non_differentiable(rows, grad)
        ctx.inputs = len(inputs)
        ctx.save_for_backward(grad)

    def loss_backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        # In place, so that a second backward pass through it fails by the saved tensor's version, not silently.
        (grad,) = ctx.saved_tensors
        ops.scale_rows_(grad, grad_loss)
        return grad, *[None] * (ctx.inputs - 1)

    torch.library.register_autograd(f"{namespace}::policy_loss_rows", loss_backward, setup_context=loss_context)


def _loss_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=torch.float32), logits.new_empty((rows, 5), dtype=torch.float32)
