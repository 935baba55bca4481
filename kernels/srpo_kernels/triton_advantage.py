"""Group-relative advantages in one launch: a program a group, float64 inside, as in advantage.py."""

from __future__ import annotations

import contextlib
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from srpo_kernels.tiles import device


@triton.jit
def _load(rewards, valid, at, end):
    """Rewards in float64, which of them count, and which are NaN or infinite though valid."""
    inside = at < end
    x = tl.load(rewards + at, mask=inside, other=0.0).to(tl.float64)
    finite = tl.abs(x) < float("inf")
    if valid is not None:
        inside = inside & (tl.load(valid + at, mask=inside, other=0) != 0)
    return x, inside & finite, inside & (finite == 0)


@triton.jit
def group_advantage_kernel(rewards, valid, offsets, advantages, counts, eps, eps_rest, STD: tl.constexpr,
                           UNBIASED: tl.constexpr, BLOCK: tl.constexpr):
    begin = tl.load(offsets + tl.program_id(0))
    end = tl.load(offsets + tl.program_id(0) + 1)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    high = tl.full([BLOCK], -float("inf"), tl.float64)
    low = tl.full([BLOCK], float("inf"), tl.float64)
    used = tl.zeros([BLOCK], tl.int64)
    ignored = tl.zeros([BLOCK], tl.int64)
    for start in range(begin, end, BLOCK):
        x, counted, bad = _load(rewards, valid, start + lanes, end)
        total += tl.where(counted, x, 0.0)
        high = tl.maximum(high, tl.where(counted, x, -float("inf")))
        low = tl.minimum(low, tl.where(counted, x, float("inf")))
        used += counted.to(tl.int64)
        ignored += bad.to(tl.int64)
    count = tl.sum(used, 0)
    mean = tl.sum(total, 0) / tl.maximum(count, 1).to(tl.float64)
    # Rounding of the mean of equal rewards, over a tiny eps, would be an advantage.
    differ = tl.max(high, 0) > tl.min(low, 0)
    factor = tl.full([], 1.0, tl.float64)
    if STD:
        squares = tl.zeros([BLOCK], tl.float64)
        for start in range(begin, end, BLOCK):
            x, counted, bad = _load(rewards, valid, start + lanes, end)
            centred = tl.where(counted, x - mean, 0.0)
            squares += centred * centred
        factor = tl.sqrt(tl.sum(squares, 0) / tl.maximum(count - UNBIASED, 1).to(tl.float64))
        factor = factor + eps + eps_rest
    for start in range(begin, end, BLOCK):
        x, counted, bad = _load(rewards, valid, start + lanes, end)
        value = tl.where(counted, tl.where(differ, (x - mean) / factor, 0.0), 0.0)
        tl.store(advantages + start + lanes, value.to(advantages.dtype.element_ty), mask=start + lanes < end)
    tl.atomic_add(counts, tl.sum(ignored, 0))
    tl.atomic_add(counts + 1, ((end > begin) & (count < 2)).to(tl.int64))


def group_advantage(
    rewards: Tensor, group_offsets: Tensor, scale_std: bool, eps: float, unbiased: bool, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Advantages [S] of rewards [S] in groups group_offsets [P + 1], which rise from 0 to S; see advantage.py.

    Returns with them, on the device and so without waiting for it, [2] int64: how many rewards were ignored for being
    NaN or infinite though valid, and how many groups that are not empty have fewer than two valid samples.
    """
    x = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).contiguous()
    offsets = group_offsets.to(x.device, torch.int64).contiguous()
    flags = None if valid is None else valid.to(x.device, torch.bool).contiguous().view(torch.uint8)
    advantages = torch.empty_like(x)
    counts = torch.zeros(2, dtype=torch.int64, device=x.device)
    groups = len(offsets) - 1
    if groups > 0:
        threads = device(x.device).tiles.advantage.threads
        # A kernel takes Python's floats as float32: what that rounds off eps goes apart.
        rounded = struct.unpack("f", struct.pack("f", eps))[0]
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            group_advantage_kernel[(groups,)](
                x, flags, offsets, advantages, counts, rounded, eps - rounded, STD=scale_std, UNBIASED=int(unbiased),
                BLOCK=threads, num_warps=threads // 32, enable_fp_fusion=True)
    return advantages, counts
