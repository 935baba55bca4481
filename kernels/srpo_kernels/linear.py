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
from srpo_kernels.losses import DEFAULT, Batch, from_options, options, prepare, row_losses, takes_one_pass

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
    local, columns = shard((hidden.shape[0], weight.shape[0]), tokens, mask, temperature, group, vocab_size)
    module = implementation(hidden, backend)
    if hidden.shape[0] <= _chunk_rows(weight):  # few enough to keep, so that no product is computed again
        kept = hidden if mask is None else hidden.masked_fill(~mask[:, None], 0)
        statistics = module.statistics(kept @ weight[:columns].T, local, temperature, columns)
    else:
        statistics = _linear_statistics(hidden, weight, local, temperature, columns, module.name)
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
            of exactly 1 (any scale belongs into `normalizer`), and this call must not be part of what activation
            checkpointing runs again. Not for ratio="sequence", nor where weight is frozen.
        The others: see policy_loss; for `group` and the gradient of hidden see linear_token_logprobs.

    Raises:
        ValueError, IndexError: as policy_loss.
        RuntimeError: when the loss is backpropagated twice, or with weight_grad and a gradient other than 1.
    """
    hidden, weight = _as_one_type(hidden, weight)
    local, columns = shard((hidden.shape[0], weight.shape[0]), tokens, mask, config.temperature, group, vocab_size)
    batch = prepare(hidden, advantages, old_logprobs, ref_logprobs, rollout_logprobs, mask, cu_seqlens, config,
                    normalizer)
    if weight_grad is not None:
        if weight_grad.shape != weight.shape or weight_grad.dtype != torch.float32:
            raise ValueError(f"weight_grad must be {list(weight.shape)} float32, got {list(weight_grad.shape)} "
                             f"{weight_grad.dtype}")
        if config.ratio == "sequence":
            raise ValueError('weight_grad needs ratio="token": ratios of sequences are known only after the last chunk')
    rows = _Rows(implementation(hidden, backend), local, columns, batch, config, group)
    compiling = torch.compiler.is_compiling() and weight_grad is None
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    # Autograd inside of what autograd sees as one operation, as _Rows takes it without one pass, cannot be compiled.
    if config.ratio == "sequence" or not needs_grad or (compiling and not rows.one_pass):
        logprobs, entropy = linear_token_logprobs(
            hidden, weight, tokens, temperature=config.temperature, return_entropy=True, mask=mask, group=group,
            vocab_size=vocab_size, backend=backend)
        loss, values = row_losses(logprobs, entropy, batch, config)
        return loss.sum(), batch.metrics(values)
    if compiling:
        total, values, _, _ = _linear_policy_loss(
            hidden, weight, local, *batch.inputs(config), columns, *options(config), mask, rows.module.name,
            hidden.requires_grad, weight.requires_grad)
    else:
        total, values = _LinearPolicyLoss.apply(hidden, weight, rows, weight_grad if weight.requires_grad else None)
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


# Operators, so that torch.compile does not unroll their chunks, whose number changes with every batch.


def _chunked_statistics(
    hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, columns: int, backend: str
) -> Tensor:
    """Row statistics [N, 4] of hidden @ weight.T."""
    module, step = implementation(hidden, backend), _chunk_rows(weight)  # type: ignore[arg-type]
    return torch.cat([module.statistics(h @ weight.T, y, temperature, columns)
                      for h, y in zip(hidden.split(step), tokens.split(step), strict=True)])


_linear_statistics = torch.library.custom_op("srpo_kernels::linear_statistics", _chunked_statistics, mutates_args=())


@_linear_statistics.register_fake
def _(hidden: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return hidden.new_empty((hidden.shape[0], 4), dtype=_wide(hidden))


@torch.library.custom_op("srpo_kernels::linear_statistics_backward", mutates_args=())
def _linear_statistics_backward(
    grad: Tensor, statistics: Tensor, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, columns: int,
    backend: str, needs_hidden: bool, needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden and of weight, or of no rows where not needed."""
    module, step = implementation(hidden, backend), _chunk_rows(weight)  # type: ignore[arg-type]
    grad_hidden, grad_weight = _new_gradients(hidden, weight, needs_hidden, needs_weight)
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, start + step)
        logits = hidden[rows] @ weight.T
        module.statistics_backward_(grad[rows], statistics[rows], logits, tokens[rows], temperature, columns)
        if needs_hidden:
            grad_hidden[rows] = logits[:, :columns] @ weight[:columns]
        if needs_weight:
            # A row without gradient is left out whatever it holds: 0 * inf would spoil all of the weight's.
            still = (grad[rows, 1:] == 0).all(1, keepdim=True)
            _add_product(grad_weight, logits, hidden[rows].masked_fill(still, 0))
        del logits  # before the next chunk's exist
    return grad_hidden, grad_weight.to(weight.dtype)


@_linear_statistics_backward.register_fake
def _(
    grad: Tensor, statistics: Tensor, hidden: Tensor, weight: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    grad_hidden, grad_weight = _new_gradients(hidden, weight, *options[-2:])
    return grad_hidden, grad_weight.to(weight.dtype)


def _statistics_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, tokens, *ctx.options = inputs
    ctx.save_for_backward(output, hidden, weight, tokens)


def _statistics_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    gradients = _linear_statistics_backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
    return *[part if needed else None for part, needed in zip(gradients, needs, strict=True)], None, None, None, None


_linear_statistics.register_autograd(_statistics_autograd, setup_context=_statistics_context)


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


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, loss: _Rows, grad_hidden: Tensor | None, grad_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss's sum and values [N, 5]; the gradients are written to grad_hidden and added to grad_weight."""
    losses, values = [hidden.new_empty(0, dtype=_wide(hidden))], [hidden.new_empty((0, 5), dtype=_wide(hidden))]
    step = _chunk_rows(weight)
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, start + step)
        chunk = hidden[rows]
        logits = chunk @ weight.T
        for part, whole in zip(loss.turn_into_gradient(logits, rows), (losses, values), strict=True):
            whole.append(part)
        if grad_hidden is not None:
            grad_hidden[rows] = logits[:, : loss.columns] @ weight[: loss.columns]
        if grad_weight is not None:
            if loss.batch.mask is not None:  # a masked row may hold anything: 0 * inf would spoil it all
                chunk = chunk.masked_fill(~loss.batch.mask[rows, None], 0)
            _add_product(grad_weight, logits, chunk)
        del logits  # before the next chunk's exist
    return torch.cat(losses).sum(), torch.cat(values)


class _LinearPolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, loss: _Rows, weight_grad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        # The product of a single chunk is rounded once, and needs no wider sum.
        narrow = hidden.shape[0] <= _chunk_rows(weight)
        grad_hidden, grad_weight = _new_gradients(
            hidden, weight, needs_hidden, needs_weight and weight_grad is None, narrow)
        total, values = _loss_and_gradients(
            hidden, weight, loss, grad_hidden if needs_hidden else None,
            weight_grad if weight_grad is not None else grad_weight if needs_weight else None)
        ctx.module, ctx.dtype, ctx.added = loss.module, weight.dtype, weight_grad is not None
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(values)
        ctx.set_materialize_grads(False)
        return total, values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.added:
            torch._assert_async(grad == 1, "with weight_grad the loss must be backpropagated with a gradient of 1")
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not ctx.added)
        return *_scaled(ctx, grad, needs), None, None


@torch.library.custom_op("srpo_kernels::linear_policy_loss", mutates_args=())
def _linear_policy_loss(
    hidden: Tensor, weight: Tensor, tokens: Tensor, advantages: Tensor, weights: Tensor, old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None, rollout_logprobs: Tensor | None, temperature: float, columns: int, clip_low: float,
    clip_high: float, dual_clip: float, cispo: bool, kl: int, kl_coef: float, entropy_coef: float, tis_cap: float,
    mask: Tensor | None, backend: str, needs_hidden: bool, needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """_LinearPolicyLoss for torch.compile: the loss's sum, values, and both gradients, of no rows where not needed."""
    config = from_options(temperature, clip_low, clip_high, dual_clip, cispo, kl, kl_coef, entropy_coef, tis_cap)
    batch = Batch(advantages, weights, old_logprobs, ref_logprobs, rollout_logprobs, mask, None)
    loss = _Rows(implementation(hidden, backend), tokens, columns, batch, config, None)  # type: ignore[arg-type]
    gradients = _new_gradients(hidden, weight, needs_hidden, needs_weight)
    total, values = _loss_and_gradients(
        hidden, weight, loss, gradients[0] if needs_hidden else None, gradients[1] if needs_weight else None)
    return total, values, *gradients


@_linear_policy_loss.register_fake
def _(hidden: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = _wide(hidden)
    total, values = hidden.new_empty((), dtype=wide), hidden.new_empty((hidden.shape[0], 5), dtype=wide)
    return total, values, *_new_gradients(hidden, weight, *options[-2:])


def _loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.module, ctx.dtype = implementation(inputs[0], inputs[-3]), inputs[1].dtype
    ctx.inputs = len(inputs)
    ctx.save_for_backward(*output[2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _loss_autograd(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return *_scaled(ctx, grad, ctx.needs_input_grad[:2]), *[None] * (ctx.inputs - 2)


_linear_policy_loss.register_autograd(_loss_autograd, setup_context=_loss_context)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _new_gradients(
    hidden: Tensor, weight: Tensor, needs_hidden: bool, needs_weight: bool, narrow: bool = False
) -> tuple[Tensor, Tensor]:
    """Gradients to write (hidden's) and to add to (weight's), of no rows where not needed."""
    return (hidden.new_empty((hidden.shape[0] if needs_hidden else 0, hidden.shape[1])),
            weight.new_zeros((weight.shape[0] if needs_weight else 0, weight.shape[1]),
                             dtype=weight.dtype if narrow else _wide(weight)))


def _scaled(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The saved gradients times that of the loss. In place, so that a second backward pass fails by their versions."""
    grad_hidden, grad_weight = ctx.saved_tensors
    for part, needed in zip(ctx.saved_tensors, needs, strict=True):
        if needed:
            ctx.module.scale_rows_(part, grad.expand(part.shape[0]))
    return grad_hidden if needs[0] else None, grad_weight.to(ctx.dtype) if needs[1] else None
