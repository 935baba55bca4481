"""vLLM's worker on CPU, with shared memory of its own launch.

vLLM names the memory in which tensor-parallel ranks add up after the end of the address at which they met. Under
torchrun that is the same text in every launch: two on one machine would take each other's memory, and after one that
was killed, which leaves its files, none would start again.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import torch.distributed as dist
from vllm.v1.worker.cpu_worker import CPUWorker

from srpo.comm import broadcast

SHARED_MEMORY = Path("/dev/shm")


class Worker(CPUWorker):
    """One a rank, made on all ranks of a launch at the same time. vLLM takes it by its name (runner.worker)."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._launch = broadcast(uuid.uuid4().hex)
        self.distributed_init_method = f"env://:{self._launch}"  # nothing else reads it: the ranks have met

    def init_device(self) -> None:
        super().init_device()
        dist.barrier()  # everybody has opened the files, which are not needed from now on
        for file in SHARED_MEMORY.glob(f"{self._launch}-*"):
            file.unlink(missing_ok=True)
