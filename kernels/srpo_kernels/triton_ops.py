"""Launchers of the Triton kernels, registered as the operators `srpo_triton`; ops.py has the schemas.

For CUDA tensors; for CPU tensors where Triton is imported under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
from torch import Tensor

from srpo_kernels import triton_rows
from srpo_kernels.ops import DTYPES, SCHEMAS, register
from srpo_kernels.tiles import Tile, device

INTERPRETED = not isinstance(triton_rows.statistics_kernel, triton.runtime.JITFunction)


def _launch(kernel: Any, tile: Tile, logits: Tensor, *arguments: Any, **structure: Any) -> None:
    if len(logits) == 0:
        return
    programs = tile.programs * device(logits.device).processors
    with torch.cuda.device(logits.device) if logits.is_cuda else contextlib.nullcontext():
        kernel[(min(len(logits), programs),)](*arguments, **structure, **tile.options(logits.dtype))


def _check_matrix(name: str, matrix: Tensor) -> None:
    if not (matrix.is_cuda or INTERPRETED):
        raise ValueError(f"srpo_triton takes CUDA tensors, got {matrix.device}; on CPU set TRITON_INTERPRET=1 before "
                         "Triton is imported, or use the operators of srpo")
    if matrix.dim() != 2 or matrix.dtype not in DTYPES:
        raise ValueError(
            f"{name} must be [N, V] float32, bfloat16 or float16, got {list(matrix.shape)} {matrix.dtype}")


def _check(logits: Tensor, tokens: Tensor, temperature: float, columns: int) -> None:
    _check_matrix("logits", logits)
    if tokens.shape != logits.shape[:1] or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be [N] int64 with N = {len(logits)}, got {list(tokens.shape)} {tokens.dtype}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 <= columns <= logits.shape[1]:
        raise ValueError(f"columns must be within the {logits.shape[1]}, got {columns}")


def _unit_columns(logits: Tensor) -> Tensor:
    return logits if logits.shape[1] <= 1 or logits.stride(1) == 1 else logits.contiguous()


def _writable(logits: Tensor) -> bool:
    """Whether a kernel can write over the logits as they lie: unit column stride, rows apart."""
    rows, width = logits.shape
    return (width <= 1 or logits.stride(1) == 1) and (rows <= 1 or logits.stride(0) >= width)


def _changed(tensor: Tensor) -> None:
    """Autograd would not notice otherwise that the values are gone."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _scale(temperature: float) -> float:
    return math.log2(math.e) / temperature


def logprob_statistics(
    logits: Tensor, tokens: Tensor, temperature: float, columns: int, inplace_backward: bool = False
) -> Tensor:
    _check(logits, tokens, temperature, columns)
    x = _unit_columns(logits)
    statistics = torch.empty((len(x), 4), dtype=torch.float32, device=x.device)
    _launch(triton_rows.statistics_kernel, device(x.device).tiles.statistics, x, x, tokens.contiguous(), statistics,
            len(x), x.shape[1], columns, x.stride(0), _scale(temperature))
    return statistics


def _statistics_gradient(
    grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int, out: Tensor
) -> None:
    for name, values in (("grad", grad), ("statistics", statistics)):
        if values.shape != (len(logits), 4) or values.dtype != torch.float32:
            raise ValueError(f"{name} must be [{len(logits)}, 4] float32, got {list(values.shape)} {values.dtype}")
    _launch(triton_rows.statistics_gradient_kernel, device(logits.device).tiles.gradient, logits, grad.contiguous(),
            statistics.contiguous(), logits, tokens.contiguous(), out, len(logits), logits.shape[1], columns,
            logits.stride(0), out.stride(0), _scale(temperature), temperature)


def logprob_statistics_backward(
    grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int
) -> Tensor:
    _check(logits, tokens, temperature, columns)
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _statistics_gradient(grad, statistics, _unit_columns(logits), tokens, temperature, columns, out)
    return out


def logprob_statistics_backward_(
    grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int
) -> None:
    _check(logits, tokens, temperature, columns)
    if _writable(logits):
        _statistics_gradient(grad, statistics, logits, tokens, temperature, columns, logits)
        _changed(logits)
    else:
        logits.copy_(logprob_statistics_backward(grad, statistics, logits, tokens, temperature, columns))


def _policy_loss(
    out: Tensor | None, logits: Tensor, tokens: Tensor, advantages: Tensor, weights: Tensor,
    old_logprobs: Tensor | None, ref_logprobs: Tensor | None, rollout_logprobs: Tensor | None, temperature: float,
    columns: int, clip_low: float, clip_high: float, dual_clip: float, cispo: bool, kl: int, kl_coef: float,
    entropy_coef: float, tis_cap: float
) -> tuple[Tensor, Tensor]:
    """Loss and values of each row; the gradient goes to `out`, which may be the logits, or nowhere."""
    _check(logits, tokens, temperature, columns)
    per_row = {"advantages": advantages, "weights": weights, "old_logprobs": old_logprobs,
               "ref_logprobs": ref_logprobs, "rollout_logprobs": rollout_logprobs}
    for name, values in per_row.items():
        if values is not None and (values.shape != logits.shape[:1] or values.dtype != torch.float32):
            raise ValueError(f"{name} must be [{len(logits)}] float32, got {list(values.shape)} {values.dtype}")
    if ref_logprobs is not None and kl not in (1, 2, 3):
        raise ValueError(f"kl must be 1, 2 or 3 with ref_logprobs, got {kl}")
    loss = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    rows = torch.empty((len(logits), 5), dtype=torch.float32, device=logits.device)
    target = logits if out is None else out
    here = device(logits.device)
    tile = here.tiles.loss_forward if out is None else here.loss_tile(logits.shape[1] * logits.element_size())
    _launch(triton_rows.policy_loss_kernel, tile, logits, logits, tokens.contiguous(),
            *[None if values is None else values.contiguous() for values in per_row.values()], loss, rows, target,
            len(logits), logits.shape[1], columns, logits.stride(0), target.stride(0), _scale(temperature), temperature,
            clip_low, clip_high, dual_clip, kl_coef, entropy_coef, tis_cap, CISPO=cispo, KL=kl,
            NEEDS_GRAD=out is not None)
    return loss, rows


def policy_loss_rows(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check_matrix("logits", logits)
    *arguments, needs_grad = arguments  # type: ignore[assignment]
    grad = logits.new_empty(logits.shape if needs_grad else (0, logits.shape[1]))
    return *_policy_loss(grad if needs_grad else None, _unit_columns(logits), *arguments), grad


def policy_loss_rows_(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    _check_matrix("logits", logits)
    if not _writable(logits):
        loss, rows, grad = policy_loss_rows(logits, *arguments, True)
        logits.copy_(grad)
        return loss, rows
    results = _policy_loss(logits, logits, *arguments)
    _changed(logits)
    return results


def scale_rows_(matrix: Tensor, scale: Tensor) -> None:
    _check_matrix("matrix", matrix)
    if not _writable(matrix):
        raise ValueError(f"matrix must have unit column stride, got strides {matrix.stride()}")
    if scale.shape != matrix.shape[:1] or scale.dtype != torch.float32:
        raise ValueError(f"scale must be [{len(matrix)}] float32, got {list(scale.shape)} {scale.dtype}")
    _launch(triton_rows.scale_kernel, device(matrix.device).tiles.scale, matrix, matrix, scale, len(matrix),
            matrix.shape[1], matrix.stride(0), scale.stride(0))
    _changed(matrix)


_library = torch.library.Library("srpo_triton", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    for _key in ("CUDA", "CPU"):
        _library.impl(_name, globals()[_name], _key)
register("srpo_triton")
