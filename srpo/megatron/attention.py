"""Causal self-attention over packed sequences: one function a process, chosen once, with the reason logged.

flash-attn (4, 3 or 2) on CUDA in bfloat16, else torch's own variable-length attention; one scaled dot product a
sequence in float32 and on the CPU, where no variable-length kernel exists.

The backward pass is deterministic where the kernel offers it: flash-attn 2 and 3, flash-attn 4 on compute capability
10. torch's variable-length attention follows torch.use_deterministic_algorithms, which we leave alone.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]

FLASH = (  # module, package's name, compute capabilities (major) that it has kernels for, and deterministic ones
    ("flash_attn.cute", "flash-attn 4", (9, 10, 11), (10,)),
    ("flash_attn_interface", "flash-attn 3", (9,), (9,)),
    ("flash_attn", "flash-attn 2", (8, 9, 10, 11, 12), (8, 9, 10, 11, 12)),
)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> torch.Tensor:
    """Attention of every token to its own sequence's tokens up to itself, scaled by 1/sqrt(D).

    query [T, Hq, D], key and value [T, Hkv, D] with Hq a multiple of Hkv; cu_seqlens [S+1] int32 covers all T tokens.
    Returns [T, Hq, D].
    """
    return backend(query.device.type, query.dtype)[0](query, key, value, cu_seqlens, max_seqlen)


@functools.cache
def backend(device: str, dtype: torch.dtype) -> tuple[Attention, str]:
    """The implementation for a device type and a dtype, and a line that says which and why."""
    function, reason = _choose(device, dtype)
    logger.info("attention: %s", reason)
    return function, reason


def _choose(device: str, dtype: torch.dtype) -> tuple[Attention, str]:
    if device != "cuda":
        return per_sequence, f"scaled_dot_product_attention by sequence: there is no variable-length kernel on {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return per_sequence, f"scaled_dot_product_attention by sequence: no variable-length kernel computes in {dtype}"
    major = torch.cuda.get_device_capability()[0]
    missing = []
    for module, name, capabilities, deterministic in FLASH:
        if major not in capabilities:
            missing.append(f"{name} has no kernels for compute capability {major}.x")
            continue
        try:
            function = importlib.import_module(module).flash_attn_varlen_func
        except (ImportError, AttributeError) as e:
            missing.append(f"{name} does not import ({e})")
            continue
        if major in deterministic and "deterministic" in inspect.signature(function).parameters:
            function = functools.partial(function, deterministic=True)
        return functools.partial(_flash, function), "; ".join([name, *missing])
    return _torch_varlen, "; ".join(["torch.nn.attention.varlen", *missing])


def _flash(
    function: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
) -> torch.Tensor:
    out = function(
        query, key, value, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen, max_seqlen_k=max_seqlen, causal=True,
    )  # fmt: skip
    return out[0] if isinstance(out, tuple) else out  # 4 and early 3 return the log-sum-exp too


def _torch_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            grouped["enable_gqa"] = True
        else:  # torch 2.11
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=(-1, 0), **grouped)
    assert isinstance(out, torch.Tensor)  # without return_aux
    return out


def per_sequence(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> torch.Tensor:
    """`attention` as one F.scaled_dot_product_attention a sequence; reads cu_seqlens on the host.

    Memory grows with a sequence's length, not its square: torch has kernels for that on CPU, and on CUDA in float32 for
    equally many query and key heads.
    """
    if query.is_cuda:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    lengths = cu_seqlens.diff().tolist()
    sequences = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)), strict=True)
    out = [
        F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, enable_gqa=q.shape[0] != k.shape[0]
        )[0].transpose(0, 1)
        for q, k, v in sequences
    ]
    return torch.cat(out)
