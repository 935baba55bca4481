"""The C++ extension as torch operators: loading it, their fake and autograd registrations, and the same three functions
as statistics.py on top of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srpo_kernels import _C

build_info = _C.build_info
set_num_threads = _C.set_num_threads
get_num_threads = _C.get_num_threads

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_ops = torch.ops.srpo


def forward(logits: Tensor, tokens: Tensor, temperature: float, columns: int) -> Tensor:
    return _ops.logprob_statistics(logits, tokens, temperature, columns)


def backward(
    grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int, inplace: bool
) -> Tensor:
    if inplace:
        _ops.logprob_statistics_backward_(grad, statistics, logits, tokens, temperature, columns)
        return logits
    return _ops.logprob_statistics_backward(grad, statistics, logits, tokens, temperature, columns)


def differentiable(logits: Tensor, tokens: Tensor, temperature: float, columns: int, inplace: bool) -> Tensor:
    return _ops.logprob_statistics(logits, tokens, temperature, columns, inplace)


@torch.library.register_fake("srpo::logprob_statistics")
def _(logits: Tensor, tokens: Tensor, temperature: float, columns: int, inplace_backward: bool = False) -> Tensor:
    return logits.new_empty((logits.shape[0], 4), dtype=torch.float32)


@torch.library.register_fake("srpo::logprob_statistics_backward")
def _(grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.register_fake("srpo::logprob_statistics_backward_")
def _(grad: Tensor, statistics: Tensor, logits: Tensor, tokens: Tensor, temperature: float, columns: int) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, tokens, *options = inputs
    ctx.save_for_backward(output, logits, tokens)
    ctx.options = options


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    return backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


torch.library.register_autograd("srpo::logprob_statistics", _autograd, setup_context=_setup_context)
