"""Which implementation computes the row statistics: the C++ extension for CPU tensors where it is built, plain torch
otherwise. Chosen once, when the package is imported, and logged; SRPO_REQUIRE_EXT=1 makes a missing extension an error.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import Literal, NamedTuple

from torch import Tensor

from srpo_kernels import statistics

logger = logging.getLogger(__name__)

Backend = Literal["cpp", "torch"]


class OpStatus(NamedTuple):
    backend: str
    reason: str


def _load() -> tuple[ModuleType | None, str]:
    """The extension, or None, and the reason in words."""
    try:
        from srpo_kernels import extension
    except ImportError as error:
        reason = f"srpo_kernels._C cannot be imported ({error}); build it with `pip install --no-build-isolation -e .`"
        if os.environ.get("SRPO_REQUIRE_EXT") == "1":
            raise ImportError(f"SRPO_REQUIRE_EXT=1, but {reason}") from error
        logger.warning("CPU log-probs in plain torch: %s", reason)
        return None, reason
    info = extension.build_info()
    reason = f"C++ extension on CPU, {info['instructions']}, {info['parallel']}, built for torch {info['torch']}"
    logger.info("CPU log-probs: %s", reason)
    return extension, reason


_extension, _reason = _load()


def implementation(logits: Tensor, backend: Backend | None) -> ModuleType:
    """The module (statistics or extension) that computes row statistics of these logits.

    Raises ValueError where the backend asked for cannot take them.
    """
    usable = _extension is not None and logits.device.type == "cpu" and logits.dtype in _extension.DTYPES
    if backend not in (None, "cpp", "torch"):
        raise ValueError(f'backend must be "cpp", "torch" or None, got {backend!r}')
    if backend == "cpp" and not usable:
        raise ValueError(f'backend "cpp" cannot take {logits.dtype} on {logits.device.type}: {_reason}')
    return _extension if _extension is not None and usable and backend != "torch" else statistics


def status() -> dict[str, OpStatus]:
    """Backend of each op for CPU tensors of float32, bfloat16 or float16, and why. Everything else: plain torch."""
    logprobs = OpStatus("torch" if _extension is None else "cpp", _reason)
    return {
        "group_advantage": OpStatus("torch", "a few small reductions; no kernel needed"),
        **dict.fromkeys(("token_logprobs", "policy_loss", "grpo_loss"), logprobs),
        **dict.fromkeys(("linear_token_logprobs", "linear_policy_loss"),
                        OpStatus(logprobs.backend, f"matrix products by torch, chunk by chunk; {_reason}")),
    }
