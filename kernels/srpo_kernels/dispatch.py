"""Which backend computes an op: Triton on GPUs, the C++ extension on CPU, plain torch otherwise.

Chosen once, when the package is imported, and logged. SRPO_REQUIRE_EXT=1 makes a missing extension an error.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from srpo_kernels import ops, statistics

logger = logging.getLogger(__name__)

Backend = Literal["cpp", "triton", "torch"]
Implementation = ops.Operators | ModuleType

OPS = ("group_advantage", "token_logprobs", "policy_loss", "grpo_loss", "linear_token_logprobs", "linear_policy_loss")


class OpStatus(NamedTuple):
    backend: str
    reason: str


class Choice(NamedTuple):
    """A backend on a kind of device: what runs there, or None, and the reason in words."""

    implementation: Implementation | None
    reason: str


_NOTHING = Choice(None, "no kernels for this kind of device")


def _extension() -> dict[str, Choice]:
    """The C++ extension, by device."""
    try:
        from srpo_kernels import extension
    except ImportError as error:
        reason = f"srpo_kernels._C cannot be imported ({error}); build it with `pip install --no-build-isolation -e .`"
        if os.environ.get("SRPO_REQUIRE_EXT") == "1":
            raise ImportError(f"SRPO_REQUIRE_EXT=1, but {reason}") from error
        return dict.fromkeys(("cpu", "cuda"), Choice(None, reason))
    info = extension.build_info()
    cpu = f"C++ extension, {info['instructions']}, {info['parallel']}, built for torch {info['torch']}"
    cuda = Choice(None, "the C++ extension was built without CUDA")
    if info["cuda"] != "no":
        cuda = Choice(ops.Operators("srpo", one_pass=False), f"C++ extension, built for CUDA {info['cuda']}")
    kernels = ops.Operators("srpo", one_pass=True)
    return {"cpu": Choice(kernels, cpu), "cuda": cuda, "meta": Choice(kernels, "shapes and memory alone")}


def _triton() -> dict[str, Choice]:
    """The Triton kernels, by device. They are not even imported where torch has no use for them."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if torch.version.cuda is None and not interpreted:
        return dict.fromkeys(("cpu", "cuda"), Choice(None, "Triton needs a CUDA build of torch, or TRITON_INTERPRET=1"))
    try:
        import triton

        from srpo_kernels import triton_ops  # noqa: F401  registers the operators
    except ImportError as error:
        return dict.fromkeys(("cpu", "cuda"), Choice(None, f"Triton cannot be imported ({error})"))
    kernels = ops.Operators("srpo_triton", one_pass=True)
    here = Choice(kernels, f"Triton {triton.__version__}" + (", interpreted" if interpreted else ""))
    return {"cpu": here if interpreted else Choice(None, "Triton needs TRITON_INTERPRET=1 on CPU"), "cuda": here}


_BACKENDS = {"cpp": _extension(), "triton": _triton()}
# The interpreter is for tests: on CPU it is taken only when asked for by name.
_ORDER: dict[str, tuple[Backend, ...]] = {"cpu": ("cpp",), "cuda": ("triton", "cpp"), "meta": ("cpp",)}


def _choose(device: str) -> tuple[str, str]:
    """Name of the backend for a kind of device, and the reason."""
    passed_over = []
    for name in _ORDER.get(device, ()):
        choice = _BACKENDS[name].get(device, _NOTHING)
        if choice.implementation is not None:
            return name, choice.reason
        passed_over.append(choice.reason)
    return "torch", "; ".join(passed_over) or f"no kernels for {device}"


_CHOSEN = {device: _choose(device) for device in _ORDER}
for _device, (_name, _reason) in _CHOSEN.items():
    if _device == "cpu" or (_device == "cuda" and torch.version.cuda is not None):
        logger.log(logging.WARNING if _name == "torch" else logging.INFO,
                   "kernels on %s: %s (%s)", _device, _name, _reason)


def implementation(logits: Tensor, backend: Backend | None) -> Implementation:
    """What computes row statistics, and perhaps the loss in one pass, for these logits (or hidden states).

    Raises ValueError where the backend asked for cannot take them.
    """
    if backend not in (None, "cpp", "triton", "torch"):
        raise ValueError(f'backend must be "cpp", "triton", "torch" or None, got {backend!r}')
    device = logits.device.type
    name = backend or (_CHOSEN[device][0] if device in _CHOSEN and logits.dtype in ops.DTYPES else "torch")
    if name == "torch":
        return statistics
    choice = _BACKENDS[name].get(device, _NOTHING)
    if choice.implementation is None or logits.dtype not in ops.DTYPES:
        reason = choice.reason if choice.implementation is None else "it takes float32, bfloat16 and float16"
        raise ValueError(f'backend "{name}" cannot take {logits.dtype} on {device}: {reason}')
    return choice.implementation


def advantage_backend(rewards: Tensor, backend: Backend | None) -> Literal["triton", "torch"]:
    """What computes group advantages. Raises ValueError where the backend asked for cannot."""
    if backend is None:
        return "triton" if _CHOSEN.get(rewards.device.type, ("",))[0] == "triton" else "torch"
    if backend == "cpp":
        raise ValueError('group_advantage has no backend "cpp": choose "triton" or "torch"')
    return "torch" if implementation(rewards.new_empty(0, dtype=torch.float32), backend) is statistics else "triton"


def triton_group_advantage(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The Triton kernel, which is imported only where it can run."""
    from srpo_kernels.triton_advantage import group_advantage

    return group_advantage(*arguments)


def status(device: torch.device | str | None = None) -> dict[str, OpStatus]:
    """Backend of each op, and why, for tensors on `device`: "cuda" where there is a GPU, else "cpu".

    float64 tensors are always taken by plain torch.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(device).type
    name, reason = _CHOSEN.get(kind, ("torch", f"no kernels for {kind}"))
    rows = OpStatus(name, reason)
    advantage = rows if name == "triton" else OpStatus("torch", "a few small reductions")
    chunked = OpStatus(name, f"matrix products by torch, chunk by chunk; then {reason}")
    return {op: advantage if op == "group_advantage" else chunked if op.startswith("linear") else rows for op in OPS}
