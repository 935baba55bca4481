"""The launch's process group, and exchange of Python objects between ranks: decisions out from rank 0, samples and
statistics in from everyone.

Objects travel over gloo on the host even when tensors use NCCL.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
_HUNG = re.compile(r"[Tt]imed out|timeout caused")
_LOST = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe|NCCL")
_group: dist.ProcessGroup | None = None
_waited = 0.0

START = timedelta(minutes=30)
"""How long a collective may wait while the run starts: ranks that read models and data are apart by minutes."""


def join() -> tuple[dist.TCPStore, str]:
    """Join the process group of the launch: NCCL on CUDA, gloo on CPU; without torchrun a group of this process alone.

    Returns the store that all ranks share, and the prefix of this launch's keys in it.
    """
    if "RANK" not in os.environ:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    store, rank, world_size = next(iter(rendezvous("env://", timeout=START)))
    prefix = "srpo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's own store outlives a restart, and with it the addresses of the ranks that were there before.
        prefix += f"/{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", store=dist.PrefixStore(prefix, store),
                            rank=rank, world_size=world_size, timeout=START)
    return store, prefix


def set_timeout(timeout: timedelta) -> None:
    """Let every collective of every group of this rank fail after so long; until now it was `START`, or what vLLM
    gave its groups."""
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(timeout, group)


def hung(error: BaseException) -> bool:
    """Whether a collective raised this because it took too long."""
    return isinstance(error, RuntimeError) and bool(_HUNG.search(str(error)))


def broken(error: BaseException) -> bool:
    """Whether a collective raised this because it took too long or another rank is gone."""
    return hung(error) or (isinstance(error, RuntimeError) and bool(_LOST.search(str(error))))


def _host_group() -> dist.ProcessGroup | None:
    global _group
    if _group is None and dist.get_backend() != "gloo":
        _group = dist.new_group(backend="gloo")
    return _group


def broadcast(value: T) -> T:
    """Rank 0's value on every rank."""
    box = [value]
    with waiting():
        dist.broadcast_object_list(box, src=0, group=_host_group())
    return box[0]


def all_gather(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    out: list[T | None] = [None] * dist.get_world_size()
    with waiting():
        dist.all_gather_object(out, value, group=_host_group())
    return out  # type: ignore[return-value]


@contextmanager
def waiting() -> Iterator[None]:
    """Count the time inside as time in which this rank waits for others, and not what its own work takes."""
    global _waited
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()  # until here it is own work
    began = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    _waited += time.perf_counter() - began


def waited() -> float:
    """Seconds that this rank has waited for others so far."""
    return _waited
