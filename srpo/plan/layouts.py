"""Which layouts a cluster allows, which of them fit, and how fast a step is in each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from srpo.check import check
from srpo.errors import UserError
from srpo.plan import memory, speed
from srpo.plan.hardware import GIB, Gpu
from srpo.plan.job import Job
from srpo.plan.workload import Workload

SIZES = (1, 2, 4, 8)
"""Tensor-parallel and pipeline sizes that are tried; vLLM stays inside a node."""
BUDGETS = (8192, 16384, 32768, 65536)
"""Tokens of a micro-batch, beside as few as the longest sequence needs."""


@dataclass(frozen=True)
class Candidate:
    """A layout of the configuration, judged."""

    job: Job
    gpu: Gpu
    work: Workload

    @cached_property
    def phases(self) -> list[memory.Phase]:
        return memory.phases(self.job, *_taken(self.gpu))

    @property
    def worst(self) -> memory.Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def spare(self) -> int:
        """Bytes left in the worst phase; negative: it does not fit."""
        return int(self.gpu.memory.value * GIB) - self.worst.total

    @cached_property
    def times(self) -> speed.Times:
        return speed.times(self.job, self.gpu, self.work)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that a search varies."""
        config = self.job.config
        return {
            "parallel.tensor": config.parallel.tensor, "parallel.pipeline": config.parallel.pipeline,
            "parallel.sequence": config.parallel.sequence, "parallel.recompute": config.parallel.recompute,
            "parallel.offload": config.parallel.offload, "rollout.tensor": config.rollout_tensor,
            "rollout.pipeline": config.rollout.pipeline, "rollout.kv_cache_gib": config.rollout.kv_cache_gib,
            "batch.micro_batch_tokens": config.batch.micro_batch_tokens,
        }


def search(base: Job, gpu: Gpu, work: Workload) -> list[Candidate]:
    """Layouts that fit, the fastest first, each with the memory settings that make it fastest."""
    best: dict[tuple[int, ...], Candidate] = {}
    floors: list[tuple[float, int, Candidate]] = []
    for job in _jobs(base, gpu):
        candidate = Candidate(job, gpu, work)
        if candidate.spare >= 0:
            rest = speed.times(job, gpu, work, generation=speed.fastest_generation(job, gpu, work))
            floors.append((rest.total, len(floors), candidate))
    for floor, _, candidate in sorted(floors):  # a replay takes hundredths of a second: none that cannot win
        job = candidate.job
        key = (job.tensor, job.pipeline, job.config.rollout_tensor)
        if key not in best or floor < best[key].times.total > candidate.times.total:
            best[key] = candidate
    return sorted(best.values(), key=lambda c: c.times.total)


def _jobs(base: Job, gpu: Gpu) -> Iterator[Job]:
    budgets = [base.longest + 1, *(b for b in BUDGETS if b > base.longest + 1)]
    for first in laid_out(base):
        if refusal(first):
            continue
        for recompute in ("none", "selective", "full"):
            for offload in (False, True):
                for budget in budgets:
                    job = _with(first, parallel=dict(recompute=recompute, offload=offload),
                                batch=dict(micro_batch_tokens=budget))
                    if (filled := _with_cache(job, gpu)) is not None:
                        yield filled


def laid_out(base: Job) -> Iterator[Job]:
    """In all sizes that are tried, whether they run or not; the first has a whole model on each GPU."""
    for tensor, pipeline, rollout in product(SIZES, repeat=3):
        yield _with(base, parallel=dict(tensor=tensor, pipeline=pipeline, sequence=tensor > 1),
                    rollout=dict(tensor=rollout, pipeline=1), batch=dict(micro_batch_tokens=base.longest + 1))


def _with(job: Job, **sections: dict[str, Any]) -> Job:
    """The job with some keys of some sections replaced."""
    config = job.config
    changed = {name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    return Job(config.model_copy(update=changed), job.shape, job.gpus)


def refusal(job: Job) -> str:
    """Why `srpo train` would not begin, or ""."""
    try:
        check(job.config, job.gpus, gpu=True)
    except UserError as e:
        return f"cannot run: {e}"
    return ""


def _with_cache(job: Job, gpu: Gpu) -> Job | None:
    """With as much KV cache as generation leaves room for, and as its sequences can fill; None: not even one."""
    empty = _with(job, rollout=dict(kv_cache_gib=0.0))
    room = gpu.memory.value * GIB - memory.generation(empty, *_taken(gpu)).total
    slots = min(job.config.rollout.max_sequences, -(-job.responses // job.replicas))
    useful = max(slots * (job.longest + 1), job.least_cache) * job.kv_bytes_per_token
    cache = min(room / GIB, math.ceil(8 * useful / GIB) / 8)
    if cache > 4:  # fewer sizes, so that a replay serves for several layouts
        cache = cache // 2 * 2
    filled = _with(job, rollout=dict(kv_cache_gib=cache))
    return None if filled.cramped else filled


def _taken(gpu: Gpu) -> tuple[int, int]:
    """Bytes beside torch's allocations, and of CUDA graphs."""
    return int(gpu.reserve.value * GIB), int(gpu.graphs.value * GIB)
