"""Group-relative advantages."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from srpo_kernels import dispatch

logger = logging.getLogger(__name__)


def group_advantage(
    rewards: Tensor,
    group_offsets: Tensor,
    *,
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-6,
    unbiased: bool = False,
    valid: Tensor | None = None,
    backend: dispatch.Backend | None = None,
) -> Tensor:
    """Advantage of each sample over its group: (reward - mean) / (std + eps), or reward - mean.

    GRPO (arXiv 2402.03300, eq. 3); scale="none" is Dr. GRPO (arXiv 2503.20783).

    Args:
        rewards: [S] floating point.
        group_offsets: [P + 1] integer; group p is samples group_offsets[p] to group_offsets[p + 1]. From 0 to S.
        scale: "std" divides by the group's standard deviation plus eps.
        unbiased: divide squared deviations by n - 1 instead of n.
        valid: [S] bool; other samples get 0 and take no part in their group's mean and deviation.
        backend: "triton" or "torch" instead of the one chosen by device; see status().

    Returns:
        [S], of rewards' dtype (float32 for a narrower one). Exactly 0 where a group's valid rewards are all equal or
        number fewer than two. A reward that is NaN or infinite counts as invalid. Both cases are logged as warnings.

    Raises:
        ValueError: for offsets that do not cover the samples, or an unknown scale.
    """
    if scale not in ("std", "none"):
        raise ValueError(f'scale must be "std" or "none", got {scale!r}')
    if rewards.dim() != 1 or group_offsets.dim() != 1:
        raise ValueError(f"rewards must be [S] and group_offsets [P + 1], got {list(rewards.shape)} and "
                         f"{list(group_offsets.shape)}")
    if valid is not None and (valid.shape != rewards.shape or valid.dtype != torch.bool):
        raise ValueError(f"valid must be {list(rewards.shape)} bool, got {list(valid.shape)} {valid.dtype}")
    chosen = dispatch.advantage_backend(rewards, backend)
    return _group_advantage(rewards.detach(), group_offsets, scale == "std", eps, unbiased, valid, chosen)


# One operator, opaque to torch.compile: it checks values and reports what it finds, which takes one copy to the host.
@torch.library.custom_op("srpo_kernels::group_advantage", mutates_args=())
def _group_advantage(
    rewards: Tensor, group_offsets: Tensor, scale: bool, eps: float, unbiased: bool, valid: Tensor | None, backend: str
) -> Tensor:
    offsets = group_offsets.to(rewards.device, torch.int64)
    if len(offsets) == 0 or not (offsets[0] == 0) & (offsets[-1] == rewards.numel()) & (offsets.diff() >= 0).all():
        raise ValueError(f"group_offsets must rise from 0 to the {rewards.numel()} rewards, got {offsets.tolist()}")
    compute = dispatch.triton_group_advantage if backend == "triton" else _in_torch
    advantages, counts = compute(rewards, offsets, scale, eps, unbiased, valid)
    ignored, small = counts.tolist()
    if ignored:
        used = rewards if valid is None else rewards.masked_fill(~valid, 0)
        where = (~used.isfinite()).nonzero().flatten().tolist()
        logger.warning("group_advantage: %d rewards are NaN or infinite and get advantage 0 (samples %s)",
                       ignored, where[:8])
    if small:
        logger.warning("group_advantage: %d of %d groups have fewer than two valid samples and get advantage 0",
                       small, len(offsets) - 1)
    return advantages


@_group_advantage.register_fake
def _(
    rewards: Tensor, group_offsets: Tensor, scale: bool, eps: float, unbiased: bool, valid: Tensor | None, backend: str
) -> Tensor:
    return rewards.new_empty(rewards.shape, dtype=torch.promote_types(rewards.dtype, torch.float32))


def _in_torch(
    rewards: Tensor, offsets: Tensor, scale: bool, eps: float, unbiased: bool, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Advantages [S], and [2] how many rewards were ignored and how many groups were too small."""
    lengths = offsets.diff()
    finite = rewards.isfinite()
    used = finite if valid is None else finite & valid
    group = torch.repeat_interleave(torch.arange(len(lengths), device=rewards.device), lengths)

    def reduce(values: Tensor, how: str, initial: float) -> Tensor:
        return torch.segment_reduce(values, how, lengths=lengths, initial=initial, unsafe=True)

    # fp64: S is small, and the deviation is then exact enough that only max == min has to be treated apart.
    x = rewards.double().masked_fill(~used, 0)
    count = reduce(used.double(), "sum", 0)
    mean = reduce(x, "sum", 0) / count.clamp(min=1)
    centred = (x - mean[group]).masked_fill(~used, 0)
    high = reduce(x.masked_fill(~used, -torch.inf), "max", -torch.inf)
    low = reduce(x.masked_fill(~used, torch.inf), "min", torch.inf)
    if scale:
        variance = reduce(centred.square(), "sum", 0) / (count - int(unbiased)).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)[group]
    # Rounding of the mean of equal rewards, over a tiny eps, would be an advantage.
    advantages = centred.masked_fill((high <= low)[group], 0)
    ignored = (~finite if valid is None else ~finite & valid).sum()
    small = ((count < 2) & (lengths > 0)).sum()
    return advantages.to(torch.promote_types(rewards.dtype, torch.float32)), torch.stack([ignored, small])
