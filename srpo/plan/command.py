"""`srpo plan`: judge a configuration, look for better layouts, print both."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srpo import config as configuration
from srpo.config import Config
from srpo.errors import UserError
from srpo.plan import memory, workload
from srpo.plan.compare import Comparison, compare
from srpo.plan.hardware import GIB, Assumption, Gpu, gpu
from srpo.plan.job import Job
from srpo.plan.layouts import Candidate, laid_out, refusal, search
from srpo.plan.reshard import Sync, sync
from srpo.plan.shape import Shape, with_model
from srpo.plan.speed import decoder
from srpo.printable import visible_json


@dataclass(frozen=True)
class Plan:
    """Everything that is printed."""

    title: str
    verdict: str
    """Why the configuration does not run or does not fit; "" if it does."""
    own: Candidate | None
    """The configuration's layout; None where it cannot run at all."""
    layouts: list[Candidate]
    advice: str
    """What to change where no layout fits; "" where one does."""
    comparison: Comparison | None
    """With the configuration's layout, or else the best."""
    oversample: float
    """rollout.oversample of the comparison."""
    recorded: workload.Recorded | None
    """The run whose ledger is replayed."""
    assumptions: list[Assumption]

    @property
    def sync(self) -> Sync | None:
        return sync(self.own.job) if self.own else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; bytes and seconds."""
        return {
            "title": self.title, "fits": not self.verdict, "verdict": self.verdict,
            "configuration": _as_dict(self.own) if self.own else None,
            "layouts": [_as_dict(c) for c in self.layouts],
            "savings": asdict(self.comparison) if self.comparison else None,
            "ledger": self.recorded.as_dict() if self.recorded else None,
            "assumptions": [asdict(a) for a in self.assumptions],
        }


def plan(path: str, overrides: list[str], gpus: int, gpu_name: str, ledger: Path | None, mean: int | None,
         as_json: bool) -> int:
    """Print the plan; 0 if the configuration fits, else 1."""
    title = f"{path} on {gpus} {gpu_name.upper()}"
    made = make(configuration.load(path, overrides), gpus, gpu(gpu_name), title, ledger, mean)
    if as_json:
        print(visible_json(json.dumps(made.as_dict(), indent=2)))
    else:
        from srpo.plan.report import show

        show(made, f"{_launcher(gpus, gpu(gpu_name))} {shlex.join([path, *overrides])}")
    return 1 if made.verdict else 0


def _launcher(gpus: int, device: Gpu) -> str:
    """What starts a run on so many GPUs, up to its configuration."""
    nodes = math.ceil(gpus / device.node.value)
    if nodes > 1:
        return f"NNODES={nodes} RDZV_ENDPOINT=HOST:29400 launch/torchrun.sh"
    return "srpo train" if gpus == 1 else f"torchrun --nproc-per-node {gpus} -m srpo train"


def make(config: Config, gpus: int, device: Gpu, title: str, ledger: Path | None = None,
         mean: int | None = None) -> Plan:
    """Raises UserError for a model whose sizes are not known, or an unreadable ledger."""
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: must be positive")
    limit = config.rollout.max_response_tokens
    if mean is not None and not 1 <= mean <= limit:
        raise UserError(f"--mean-tokens {mean}: give 1 to rollout.max_response_tokens = {limit}")
    if mean is not None and ledger:
        raise UserError(f"--mean-tokens {mean}: has no effect with --ledger, whose lengths are replayed")
    config = with_model(config)
    work = workload.workload(config, ledger, mean)
    oversample = config.rollout.oversample if config.rollout.oversample > 1 else workload.TRIED
    job = Job(config, Shape.of(config), gpus)
    own, verdict = None, refusal(job)
    if not verdict:
        own = Candidate(job, device, work)
        verdict = misfit(own)
    layouts = search(job, device, work)
    shown = own if own and not verdict else next(iter(layouts), None)
    comparison = None
    if shown:
        comparison = compare(decoder(shown.job, device), work, shown.job.replicas, oversample, config.resample,
                             config.batch.prompts)
    assumptions = [*workload.assumptions(config, work, mean), *device.assumptions]
    advice = "" if layouts else _advice(job)
    return Plan(title, verdict, own, layouts, advice, comparison, oversample, work.recorded, assumptions)


def misfit(candidate: Candidate) -> str:
    """Why it would run out of memory, or ""."""
    job, worst = candidate.job, candidate.worst
    if candidate.spare < 0:
        return (f"does not fit: {worst.name} needs {worst.total / GIB:.1f} GiB of {candidate.gpu.memory.value:.1f}, "
                f"{-candidate.spare / GIB:.1f} too much (the moment: {worst.moment}, pipeline stage {worst.stage})")
    return f"does not fit: {job.cramped}" if job.cramped else ""


def _advice(job: Job) -> str:
    refusals = [refusal(tried) for tried in laid_out(job)]
    if all(refusals):
        return f"Nor does another layout run; that of a whole model on each GPU {refusals[0]}"
    return ("No layout of these sizes fits. More GPUs, fewer or shorter responses in a micro-batch "
            "(rollout.max_response_tokens), or a smaller model would.")


def _as_dict(candidate: Candidate) -> dict[str, Any]:
    times, moved = candidate.times, sync(candidate.job)
    return {
        "settings": candidate.settings,
        "memory": {p.name: {"moment": p.moment, "stage": p.stage, "total": p.total, "terms": p.terms}
                   for p in candidate.phases},
        "host_memory": memory.host(candidate.job), "spare": candidate.spare,
        "sync_bytes": {"fullest_rank": max(moved.needed), "owned": max(moved.owned)},
        "seconds": {**times.phases, "step": times.total},
        "tokens_per_second_per_gpu": times.tokens_per_gpu, "mfu_update": times.mfu, "mfu_step": times.mfu_step,
    }
