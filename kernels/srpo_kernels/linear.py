"""The same from hidden states and the output layer's weight: logits exist for a chunk of rows at a time.

The policy loss turns each chunk of logits into its gradient where it stands and goes on to both products with it, so
that a whole step takes three matrix products; what is kept for the backward pass is the gradients, of hidden states'
and weight's size. Where a row's loss depends on other rows (ratios of whole sequences) and for bare log-probs the
incoming gradient is not known in time, and where rows take more than a chunk the backward pass computes the logits
again, a fourth product.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from srpo_kernels.config import PolicyLossConfig, PolicyLossMetrics
from srpo_kernels.dispatch import Backend, Implementation, implementation
from srpo_kernels.logprob import merge, shard
from srpo_kernels.losses import DEFAULT, Batch, options, prepare, row_losses, takes_one_pass

# Logits held at a time, in elements. On a GPU enough rows to keep the matrix units busy and the weight's gradient from
# being read and written too often (1 GiB of bfloat16, 3,500 rows of Qwen's vocabulary); on CPU nearer the caches.
CHUNK = {"cuda": 2**29, "cpu": 2**26}


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
    """token_logprobs of logits = hidden @ weight.T, holding a chunk of rows at a time: recomputed backward if several.

    Args:
        hidden: [N, H], of weight's dtype, which is also that of the logits. Under torch.autocast both are cast to its.
        weight: [V, H], this rank's shard with `group`. May be frozen. Its gradient is accumulated over chunks in
            float32.
        The others: see token_logprobs.

    With `group` the gradient of hidden is this rank's PARTIAL one, from its own columns. The caller sums it over the
    group: by Megatron's copy_to_tensor_model_parallel_region, or gather_from_sequence_parallel_region (with
    tensor_parallel_output_grad=True), before this call. That of weight is whole.
    """
    hidden, weight = _as_one_type(hidden, weight)
    local, columns = shard((len(hidden), len(weight)), tokens, mask, temperature, group, vocab_size)
    module = implementation(hidden, backend)
    if len(hidden) <= _chunk_rows(weight):  # few enough to keep, so that no product is computed again
        kept = hidden if mask is None else hidden.masked_fill(~mask[:, None], 0)
        statistics = module.statistics(kept @ weight.T, local, temperature, columns)
    else:
        statistics = _LinearStatistics.apply(hidden, weight, local, temperature, columns, module)
    logprobs, entropy = merge(statistics, mask, temperature, group)
    return (logprobs, entropy) if return_entropy else logprobs


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    advantages: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    config: PolicyLossConfig = DEFAULT,
    normalizer: float | Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    weight_grad: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, PolicyLossMetrics]:
    """policy_loss of logits = hidden @ weight.T, never held whole; differentiable in hidden [N, H] and weight [V, H].

    Args:
        weight_grad: [V, H] float32, such as Megatron's main_grad: the gradient of weight is added to it, and autograd
            gets none. That happens in this call, its forward pass, so the loss must be backpropagated with a gradient
            of exactly 1: any scale belongs into `normalizer`. Not for ratio="sequence".
        The others: see policy_loss; for `group` and the gradient of hidden see linear_token_logprobs.

    Raises:
        ValueError, IndexError: as policy_loss.
        RuntimeError: when the loss is backpropagated twice, or with weight_grad and a gradient other than 1.
    """
    hidden, weight = _as_one_type(hidden, weight)
    local, columns = shard((len(hidden), len(weight)), tokens, mask, config.temperature, group, vocab_size)
    batch = prepare(hidden, advantages, old_logprobs, ref_logprobs, rollout_logprobs, mask, cu_seqlens, config,
                    normalizer)
    if weight_grad is not None:
        if weight_grad.shape != weight.shape or weight_grad.dtype != torch.float32:
            raise ValueError(f"weight_grad must be {list(weight.shape)} float32, got {list(weight_grad.shape)} "
                             f"{weight_grad.dtype}")
        if config.ratio == "sequence":
            raise ValueError('weight_grad needs ratio="token": ratios of sequences are known only after the last chunk')
    rows = _Rows(implementation(hidden, backend), local, columns, batch, config, group)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    # Autograd inside an autograd function, as _Rows takes it without the one-pass loss, cannot be compiled.
    untraceable = torch.compiler.is_compiling() and not rows.one_pass and weight_grad is None
    if config.ratio == "sequence" or not needs_grad or untraceable:
        logprobs, entropy = linear_token_logprobs(
            hidden, weight, tokens, temperature=config.temperature, return_entropy=True, mask=mask, group=group,
            vocab_size=vocab_size, backend=backend)
        loss, values = row_losses(logprobs, entropy, batch, config)
        return loss.sum(), batch.metrics(values)
    total, values = _LinearPolicyLoss.apply(hidden, weight, rows, weight_grad)
    return total, batch.metrics(values)


def _as_one_type(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Under torch.autocast both in its dtype, as for any matrix product; and so in the backward pass too."""
    device = hidden.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if cast and torch.float64 not in (hidden.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(f"hidden must be [N, H] and weight [V, H] of one dtype, got {tuple(hidden.shape)} "
                         f"{hidden.dtype} and {tuple(weight.shape)} {weight.dtype}")
    return hidden, weight


def _chunk_rows(weight: Tensor) -> int:
    rows = CHUNK.get(weight.device.type, CHUNK["cuda"]) // max(1, weight.shape[0])
    return max(1, rows if rows < 128 else rows // 128 * 128)  # whole tiles of the matrix product


def _add_product(total: Tensor, dlogits: Tensor, hidden: Tensor) -> None:
    """total [V, H] += dlogits.T @ hidden, summed in total's dtype."""
    if dlogits.dtype == total.dtype:
        total.addmm_(dlogits.T, hidden)
    elif total.is_cuda:
        torch.addmm(total, dlogits.T, hidden, out_dtype=total.dtype, out=total)
    else:  # a product has the dtype of its factors here: block by block, so that it stays small beside the total
        rows = max(1, 2**22 // max(1, hidden.shape[1]))
        for start in range(0, len(total), rows):
            total[start : start + rows] += dlogits[:, start : start + rows].T @ hidden


class _LinearStatistics(torch.autograd.Function):
    """Row statistics of hidden @ weight.T."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, columns: int,
        module: Implementation,
    ) -> Tensor:
        ctx.rows = _chunk_rows(weight)
        ctx.options = (temperature, columns)
        ctx.module = module
        parts = [module.statistics(h @ weight.T, y, temperature, columns)
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
            ctx.module.statistics_backward_(grad[rows], statistics[rows], logits, tokens[rows], *ctx.options)
            if grad_hidden is not None:
                grad_hidden[rows] = logits @ weight
            if grad_weight is not None:
                # A row without gradient is left out whatever it holds: 0 * inf would spoil all of the weight's.
                still = (grad[rows, 1:] == 0).all(1, keepdim=True)
                _add_product(grad_weight, logits, hidden[rows].masked_fill(still, 0))
            del logits  # before the next chunk's exist
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


class _Rows:
    """The policy loss of chunks of logits."""

    def __init__(
        self, module: Implementation, tokens: Tensor, columns: int, batch: Batch, config: PolicyLossConfig,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.module, self.tokens, self.columns = module, tokens, columns
        self.batch, self.config, self.group = batch, config, group
        self.one_pass = module.one_pass and takes_one_pass(config, group)

    def turn_into_gradient(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Loss [n] and values [n, 5] of the logits [n, V] of these rows, over which their gradient is written."""
        batch, tokens = self.batch.rows(rows), self.tokens[rows]
        if self.one_pass:
            return self.module.policy_loss_rows_(
                logits, tokens, *batch.inputs(self.config), self.columns, *options(self.config))
        temperature = self.config.temperature
        statistics = self.module.statistics(logits, tokens, temperature, self.columns)
        with torch.enable_grad():
            merged = merge(statistics.requires_grad_(), batch.mask, temperature, self.group)
            loss, values = row_losses(*merged, batch, self.config)
            (grad,) = torch.autograd.grad(loss.sum(), statistics)
        self.module.statistics_backward_(grad, statistics.detach(), logits, tokens, temperature, self.columns)
        return loss.detach(), values


class _LinearPolicyLoss(torch.autograd.Function):
    """The loss's sum and values [N, 5]; the gradients are computed with it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, loss: _Rows, weight_grad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        wide = torch.promote_types(weight.dtype, torch.float32)
        step = _chunk_rows(weight)
        grad_weight = weight_grad
        if weight_grad is None and ctx.needs_input_grad[1]:
            # The product of a single chunk is rounded once, and needs no wider sum.
            grad_weight = torch.zeros_like(weight, dtype=weight.dtype if len(hidden) <= step else wide)
        losses, values = [hidden.new_empty(0, dtype=wide)], [hidden.new_empty((0, 5), dtype=wide)]
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            chunk = hidden[rows]
            logits = chunk @ weight.T
            for part, whole in zip(loss.turn_into_gradient(logits, rows), (losses, values), strict=True):
                whole.append(part)
            if grad_hidden is not None:
                grad_hidden[rows] = logits @ weight
            if grad_weight is not None:
                if loss.batch.mask is not None:  # a masked row may hold anything: 0 * inf would spoil it all
                    chunk = chunk.masked_fill(~loss.batch.mask[rows, None], 0)
                _add_product(grad_weight, logits, chunk)
            del logits  # before the next chunk's exist
        ctx.module, ctx.dtype, ctx.added = loss.module, weight.dtype, weight_grad is not None
        ctx.save_for_backward(grad_hidden, None if ctx.added else grad_weight)
        every = torch.cat(values)
        ctx.mark_non_differentiable(every)
        ctx.set_materialize_grads(False)
        return torch.cat(losses).sum(), every

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, Tensor | None, None, None]:
        # In place, so that a second backward pass fails by the saved tensors' versions.
        grad_hidden, grad_weight = ctx.saved_tensors
        if ctx.added:
            torch._assert_async(grad == 1, "with weight_grad the loss must be backpropagated with a gradient of 1")
        for part in (grad_hidden, grad_weight):
            if part is not None:
                ctx.module.scale_rows_(part, grad.expand(len(part)))
        return grad_hidden, None if grad_weight is None else grad_weight.to(ctx.dtype), None, None
