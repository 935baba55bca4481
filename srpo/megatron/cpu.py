"""Run Megatron-Core 0.16.1 on CPU tensors and gloo: everything that it needs for that.

Megatron names CUDA literally where no flag or subclass reaches: `device=torch.cuda.current_device()`, `device="cuda"`,
`weight.cuda()`, `param.type() == "torch.cuda.FloatTensor"`. `install` rebinds the global name `torch` in the modules
of MODULES to a facade, and runs the functions of TYPE_CHECKS under a function mode. torch itself stays as it is, and
a place that is not listed fails with torch's own "not compiled with CUDA" error. CUDA runs never import this file.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")

MODULES = (  # below megatron.core, with what each asks CUDA for
    "utils",  # norms, GlobalMemoryBuffer
    "pipeline_parallel.schedules",  # total_num_tokens
    "pipeline_parallel.p2p_communication",  # receive buffers, shapes, synchronize
    "distributed.param_and_grad_buffer",  # parameter and gradient buffers
    "optimizer.optimizer",  # loss scale, overflow buffers
    "optimizer.clip_grads",  # norm buffers
    "optimizer.distrib_optimizer",  # state on load, gather on save
    "tensor_parallel.mappings",  # sequence parallel and gather buffers
    "tensor_parallel.layers",  # weights, sequence parallel backward
    "tensor_parallel.random",  # seeds, generator tracker, recompute
    "dist_checkpointing.exchange_utils",
    "dist_checkpointing.strategies.async_utils",
    "dist_checkpointing.strategies.filesystem_async",
    "dist_checkpointing.strategies.fully_parallel",
    "dist_checkpointing.strategies.state_dict_saver",
)
TYPE_CHECKS = (  # (module, class or None, function) that ask `tensor.type()` or call `tensor.cuda()`
    ("optimizer.distrib_optimizer", "DistributedOptimizer", "__init__"),
    ("optimizer.distrib_optimizer", "DistributedOptimizer", "get_parameter_state_dp_zero"),
    ("optimizer.optimizer", None, "clip_grad_by_total_norm_fp32"),
    ("models.common.language_module.language_module", "LanguageModule", "setup_embeddings_and_output_layer"),
)


class _Cuda(types.ModuleType):
    """torch.cuda as Megatron sees it: the current device is the CPU, its generator is the CPU's."""

    current_device = staticmethod(lambda: CPU)
    synchronize = empty_cache = staticmethod(lambda *_: None)
    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *_: torch.set_rng_state(state))
    manual_seed = staticmethod(torch.manual_seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> staticmethod:
    @functools.wraps(factory)
    def make(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is not None and torch.device(device).type == "cuda":
            device = CPU
        return factory(*args, device=device, **kwargs)

    return staticmethod(make)


class _Torch(types.ModuleType):
    """torch as Megatron sees it: factories asked for "cuda" give CPU tensors."""

    cuda = _Cuda("torch.cuda")
    tensor, empty, empty_like = _on_cpu(torch.tensor), _on_cpu(torch.empty), _on_cpu(torch.empty_like)
    zeros, ones = _on_cpu(torch.zeros), _on_cpu(torch.ones)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _CudaTypes(TorchFunctionMode):
    """While active, `t.type()` answers torch.cuda.* and `t.cuda()` is t."""

    def __torch_function__(self, func: Any, cls: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        out = func(*args, **(kwargs or {}))
        if func is torch.Tensor.type and isinstance(out, str):
            out = out.replace("torch.", "torch.cuda.", 1)
        return out


def _with_cuda_types(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _CudaTypes():
            return function(*args, **kwargs)

    return wrapped


@functools.cache
def install() -> None:
    """Make this process's Megatron-Core compute on the CPU. Call before anything of it is built; once is enough."""
    facade = _Torch("torch")
    for name in MODULES:
        importlib.import_module(f"megatron.core.{name}").torch = facade  # type: ignore[attr-defined]
    for name, owner, function in TYPE_CHECKS:
        module: Any = importlib.import_module(f"megatron.core.{name}")
        place = getattr(module, owner) if owner else module
        setattr(place, function, _with_cuda_types(getattr(place, function)))
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
