"""Exchange of Python objects between ranks: decisions out from rank 0, samples and statistics in from everyone.

Objects travel over gloo on the host even when tensors use NCCL.
"""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")
_group: dist.ProcessGroup | None = None


def _host_group() -> dist.ProcessGroup | None:
    global _group
    if _group is None and dist.get_backend() != "gloo":
        _group = dist.new_group(backend="gloo")
    return _group


def broadcast(value: T) -> T:
    """Rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_host_group())
    return box[0]


def all_gather(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    out: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value, group=_host_group())
    return out  # type: ignore[return-value]
