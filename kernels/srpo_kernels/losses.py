"""The GRPO family of policy losses, from logits or straight from rewards.

All variants are a loss a token times a weight a token, summed (config.py names their sources). With the normalizer
given as the whole batch's count, the losses and gradients of micro-batches and ranks simply add up.

A token-level loss of a whole vocabulary is computed with its gradient in one pass over the logits, since what a row's
gradient depends on is known once the row has been read: its log-prob, and constants. What else there is, ratios of
whole sequences and vocabularies split over ranks, takes a pass for the log-probs and one for the gradient, with the
formulas below, under autograd, between them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from srpo_kernels.advantage import group_advantage
from srpo_kernels.config import PolicyLossConfig, PolicyLossMetrics
from srpo_kernels.dispatch import Backend, implementation
from srpo_kernels.logprob import merge, shard

# exp(20) is 5e8: a log-ratio beyond this is a broken batch, and its gradient is dropped before it overflows.
LOG_RATIO_BOUND = 20.0

DEFAULT = PolicyLossConfig()

_ESTIMATORS: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")


def policy_loss(
    logits: Tensor,
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
    backend: Backend | None = None,
) -> tuple[Tensor, PolicyLossMetrics]:
    """Policy loss of packed response tokens; differentiable in the logits.

    Args:
        logits: [N, V], row n predicting token n; see token_logprobs for dtypes, group, vocab_size and backend.
        tokens: [N] int64; anything where masked.
        advantages: [N], or [S] a sequence with cu_seqlens ([N] where N == S).
        old_logprobs: [N] of the policy before the update; None: the current ones, so that every ratio is 1.
        ref_logprobs: [N] of the reference policy, for KL.
        rollout_logprobs: [N] as reported by the inference engine, for tis_cap and metrics.rollout_diff.
        mask: [N] bool; False rows get a gradient of exactly 0 and count nowhere, even if they hold NaN or inf.
        cu_seqlens: [S + 1] integer offsets of the sequences in N, from 0 to N.
        normalizer: denominator of the loss, a float or a 0-dim tensor: tokens ("token"), sequences ("sequence"),
            sequences * constant_length ("constant") of the whole batch. None: this call's own. Sequence-level options
            need a sequence's tokens to be in one call.

    Returns:
        The 0-dim loss (float32, float64 for float64 logits) and its metrics.

    Raises:
        ValueError: for shapes that do not fit, or an option without the tensor it needs.
        IndexError: for an unmasked token outside the vocabulary (on CPU).
    """
    local, columns = shard(logits.shape, tokens, mask, config.temperature, group, vocab_size)
    batch = prepare(logits, advantages, old_logprobs, ref_logprobs, rollout_logprobs, mask, cu_seqlens, config,
                    normalizer)
    module = implementation(logits, backend)
    if module.one_pass and takes_one_pass(config, group):
        needs_grad = torch.is_grad_enabled() and logits.requires_grad
        loss, values, _ = module.policy_loss_rows(logits, local, *batch.inputs(config), columns, *options(config),
                                                  needs_grad)
        return loss.sum(), batch.metrics(values)
    statistics = module.statistics(logits, local, config.temperature, columns)
    loss, values = row_losses(*merge(statistics, mask, config.temperature, group), batch, config)
    return loss.sum(), batch.metrics(values)


def grpo_loss(
    logits: Tensor,
    tokens: Tensor,
    rewards: Tensor,
    group_offsets: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-6,
    unbiased: bool = False,
    valid: Tensor | None = None,
    backend: Backend | None = None,
    **options: Any,
) -> tuple[Tensor, PolicyLossMetrics]:
    """policy_loss of the group-relative advantages of rewards [S], sequence s being tokens cu_seqlens[s] to [s + 1].

    group_offsets, scale, eps, unbiased, valid as in group_advantage; backend and options are policy_loss's keywords. A
    sample that is not valid has advantage 0 but still counts in the normalizer, KL and entropy: mask its tokens too.
    """
    advantages = group_advantage(rewards, group_offsets, scale=scale, eps=eps, unbiased=unbiased, valid=valid,
                                 backend="torch" if backend == "torch" else None)
    if len(rewards) != len(cu_seqlens) - 1:
        raise ValueError(f"cu_seqlens must be [{len(rewards) + 1}] for {len(rewards)} rewards, got {len(cu_seqlens)}")
    # One a token, since policy_loss would take [S] for [N] where the two are equal.
    advantages = advantages[_sequences(cu_seqlens, torch.ones_like(tokens, dtype=torch.float32)).of_token]
    return policy_loss(logits, tokens, advantages, cu_seqlens=cu_seqlens, backend=backend, **options)


class _Sequences(NamedTuple):
    lengths: Tensor
    """[S] tokens of each sequence, masked ones too."""
    of_token: Tensor
    """[N] the sequence that each token belongs to."""
    sizes: Tensor
    """[S] unmasked tokens, floating point."""

    def sum(self, values: Tensor) -> Tensor:
        """[S] from [N], deterministic on every device (unlike index_add)."""
        return torch.segment_reduce(values, "sum", lengths=self.lengths, initial=0, unsafe=True)


def _sequences(cu_seqlens: Tensor, weights: Tensor) -> _Sequences:
    rows = len(weights)
    whole = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == rows)
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(whole, f"cu_seqlens must run from 0 to the {rows} tokens")
    elif not whole:
        raise ValueError(f"cu_seqlens must run from 0 to the {rows} tokens, got {cu_seqlens.tolist()}")
    lengths = cu_seqlens.to(weights.device, torch.int64).diff()
    of_token = torch.repeat_interleave(torch.arange(len(lengths), device=weights.device), lengths, output_size=rows)
    sequences = _Sequences(lengths, of_token, weights)
    return sequences._replace(sizes=sequences.sum(weights))


class Batch(NamedTuple):
    """What a loss needs to know of its rows, besides the logits."""

    advantages: Tensor
    """[N], like the following of float32, or float64 for float64 logits."""
    weights: Tensor
    """[N] each token's share of the loss: mask, aggregation and normalizer. 0 where masked."""
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None
    rollout_logprobs: Tensor | None
    mask: Tensor | None
    sequences: _Sequences | None

    def rows(self, rows: slice) -> Batch:
        """Some of the rows, of a loss that does not look at whole sequences."""
        old, ref, rollout, mask = (None if values is None else values[rows] for values in (
            self.old_logprobs, self.ref_logprobs, self.rollout_logprobs, self.mask))
        return Batch(self.advantages[rows], self.weights[rows], old, ref, rollout, mask, None)

    def inputs(self, config: PolicyLossConfig) -> tuple[Any, ...]:
        """For policy_loss_rows: up to temperature."""
        rollout = None if config.tis_cap is None else self.rollout_logprobs
        return (self.advantages, self.weights, self.old_logprobs, self.ref_logprobs, rollout, config.temperature)

    def metrics(self, values: Tensor) -> PolicyLossMetrics:
        """From values [N, 5]: log-prob, entropy, policy term, KL and clipping of each row, 0 where masked."""
        logprobs, entropy = values[:, 0].contiguous(), values[:, 1].contiguous()
        _, entropy_sum, policy_loss, kl, clipped = values.sum(0).unbind()
        rollout_diff = None
        if self.rollout_logprobs is not None:
            rollout_diff = (logprobs - self.rollout_logprobs).abs()
        tokens = torch.full((), len(values), device=values.device) if self.mask is None else self.mask.sum()
        return PolicyLossMetrics(
            logprobs=logprobs, entropy=entropy, rollout_diff=rollout_diff, policy_loss=policy_loss, kl=kl,
            entropy_sum=entropy_sum, clipped=clipped.to(torch.int64), tokens=tokens)


def prepare(
    like: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    config: PolicyLossConfig,
    normalizer: float | Tensor | None,
) -> Batch:
    """Check the arguments of policy_loss and bring them to one form, on the device of `like` (logits or hidden)."""
    rows = len(like)
    _check(rows, advantages, old_logprobs, ref_logprobs, rollout_logprobs, cu_seqlens, config, normalizer)
    wide = torch.promote_types(like.dtype, torch.float32)
    kept = like.new_ones(rows, dtype=wide) if mask is None else mask.to(wide)
    sequences = None if cu_seqlens is None else _sequences(cu_seqlens, kept)
    if sequences is not None and len(advantages) != rows:
        advantages = advantages.to(kept.device)[sequences.of_token]

    def clean(values: Tensor) -> Tensor:
        values = values.detach().to(kept)
        return values.contiguous() if mask is None else values.masked_fill(~mask, 0)

    old, ref, rollout = (None if values is None else clean(values)
                         for values in (old_logprobs, ref_logprobs, rollout_logprobs))
    weights = _weights(kept, sequences, config, normalizer)
    return Batch(clean(advantages), weights, old, ref, rollout, mask, sequences)


def takes_one_pass(config: PolicyLossConfig, group: dist.ProcessGroup | None) -> bool:
    """Whether a row's loss follows from its own logits alone."""
    return config.ratio == "token" and (group is None or dist.get_world_size(group) == 1)


def options(config: PolicyLossConfig) -> tuple[Any, ...]:
    """For policy_loss_rows: after columns."""
    unbounded = float("inf")
    return (config.clip_low, config.clip_high, unbounded if config.dual_clip is None else config.dual_clip,
            config.objective == "cispo", 1 + _ESTIMATORS.index(config.kl or "k3"), config.kl_coef,
            config.entropy_coef, unbounded if config.tis_cap is None else config.tis_cap)


def from_options(
    temperature: float, clip_low: float, clip_high: float, dual_clip: float, cispo: bool, kl: int, kl_coef: float,
    entropy_coef: float, tis_cap: float,
) -> PolicyLossConfig:
    """The token-level configuration with these options."""
    unbounded = float("inf")
    return PolicyLossConfig(
        clip_low=clip_low, clip_high=clip_high, dual_clip=None if dual_clip == unbounded else dual_clip,
        objective="cispo" if cispo else "clip", kl=_ESTIMATORS[kl - 1], kl_coef=kl_coef, entropy_coef=entropy_coef,
        temperature=temperature, tis_cap=None if tis_cap == unbounded else tis_cap)


def row_losses(logprobs: Tensor, entropy: Tensor, batch: Batch, config: PolicyLossConfig) -> tuple[Tensor, Tensor]:
    """Weighted loss [N] of each row, differentiable in its log-prob and entropy, and the values [N, 5] of metrics()."""
    current = logprobs.detach()
    old = current if batch.old_logprobs is None else batch.old_logprobs
    log_ratio = _log_ratio(logprobs, old, batch.sequences if config.ratio == "sequence" else None)
    policy, clipped = _policy_term(logprobs, log_ratio, batch.advantages, config)
    if config.tis_cap is not None and batch.rollout_logprobs is not None:
        policy = policy * (old - batch.rollout_logprobs).exp().clamp(max=config.tis_cap)
    loss = policy
    kl = torch.zeros_like(current)
    if batch.ref_logprobs is not None:
        kl = _kl_term(logprobs, batch.ref_logprobs, config.kl or "k3")
        if config.kl_coef:
            loss = loss + config.kl_coef * kl
    if config.entropy_coef:
        loss = loss - config.entropy_coef * entropy
    values = torch.stack([part.detach() for part in (logprobs, entropy, policy, kl, clipped.to(kl))], 1)
    if batch.mask is not None:
        values = values.masked_fill(~batch.mask[:, None], 0)
    return loss * batch.weights, values


def _weights(
    kept: Tensor, sequences: _Sequences | None, config: PolicyLossConfig, normalizer: float | Tensor | None
) -> Tensor:
    count = kept.sum()
    if sequences is not None and config.aggregate != "token":
        count = (sequences.sizes > 0).sum()
        if config.aggregate == "sequence":
            kept = kept / sequences.sizes.clamp(min=1)[sequences.of_token]
        elif config.constant_length is not None:
            count = count * config.constant_length
    # 0 where masked even for a count of 0, such as that of a batch that is masked throughout.
    return torch.where(kept > 0, kept / (count.clamp(min=1) if normalizer is None else normalizer), 0)


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor, sequences: _Sequences | None) -> Tensor:
    """Token log-ratios, or given the sequences GSPO-token's: the sequence's mean, each token's own gradient."""
    log_ratio = logprobs - old_logprobs
    if sequences is not None:
        mean = sequences.sum(log_ratio.detach()) / sequences.sizes.clamp(min=1)
        log_ratio = mean[sequences.of_token] + (logprobs - logprobs.detach())
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def _policy_term(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, config: PolicyLossConfig
) -> tuple[Tensor, Tensor]:
    """Loss [N] of each token, and [N] bool where its ratio was clipped."""
    ratio = log_ratio.exp()
    low, high = 1 - config.clip_low, 1 + config.clip_high
    bounded = ratio.clamp(low, high)
    if config.objective == "cispo":
        return -bounded.detach() * advantages * logprobs, (ratio < low) | (ratio > high)
    # min(r A, clip(r) A), spelled out so that a tie cannot split the gradient.
    clipped = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    loss = torch.where(clipped, -bounded.detach() * advantages, -ratio * advantages)
    if config.dual_clip is not None:
        above = (advantages < 0) & (ratio > config.dual_clip)
        loss = torch.where(above, -config.dual_clip * advantages, loss)
        clipped = clipped | above
    return loss, clipped


class _K3(torch.autograd.Function):
    """exp(d) - 1 - d with a gradient that does not cancel: autograd's would be (expm1(d) + 1) - 1, 0 for small d."""

    @staticmethod
    def forward(ctx: Any, d: Tensor) -> Tensor:
        growth = torch.expm1(d)
        ctx.save_for_backward(growth)
        # expm1(d) - d cancels as well where d is small; the next terms of the series are below rounding there.
        return torch.where(d.abs() < 1e-2, d * d * (0.5 + d * (1 / 6 + d * (1 / 24 + d / 120))), growth - d)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def _kl_term(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    x = logprobs - ref_logprobs
    if estimator == "k1":
        return x
    if estimator == "k2":
        return 0.5 * x.square()
    return _K3.apply((-x).clamp(max=LOG_RATIO_BOUND))


def _check(
    rows: int,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    cu_seqlens: Tensor | None,
    config: PolicyLossConfig,
    normalizer: float | Tensor | None,
) -> None:
    given = {"old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "rollout_logprobs": rollout_logprobs}
    for name, values in given.items():
        if values is not None and values.shape != (rows,):
            raise ValueError(f"{name} must be [{rows}], one a token, got {list(values.shape)}")
    if cu_seqlens is not None and (cu_seqlens.dim() != 1 or not len(cu_seqlens) or cu_seqlens.is_floating_point()):
        raise ValueError(f"cu_seqlens must be [S + 1] integers, got {list(cu_seqlens.shape)} {cu_seqlens.dtype}")
    sequences = None if cu_seqlens is None else len(cu_seqlens) - 1
    if advantages.dim() != 1 or len(advantages) not in (rows, sequences):
        per_sequence = "or one a sequence with cu_seqlens" if sequences is None else f"or [{sequences}], one a sequence"
        raise ValueError(f"advantages must be [{rows}], one a token, {per_sequence}, got {list(advantages.shape)}")
    own_count = normalizer is None and config.aggregate == "constant"
    if cu_seqlens is None and (config.ratio == "sequence" or config.aggregate == "sequence" or own_count):
        raise ValueError(f"ratio={config.ratio!r} with aggregate={config.aggregate!r} needs cu_seqlens")
    if own_count and config.constant_length is None:
        raise ValueError('aggregate="constant" needs config.constant_length, or a normalizer')
    if config.kl is not None and ref_logprobs is None:
        raise ValueError(f"kl={config.kl!r} needs ref_logprobs")
    if config.tis_cap is not None and rollout_logprobs is None:
        raise ValueError(f"tis_cap={config.tis_cap} needs rollout_logprobs")
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(f"normalizer must be a number or a 0-dim tensor, got {list(normalizer.shape)}")
    elif normalizer is not None and not normalizer > 0:
        raise ValueError(f"normalizer must be positive, got {normalizer}")
