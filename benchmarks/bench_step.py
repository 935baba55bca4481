"""A whole step by phase: response tokens a second and GPU, and model FLOPs utilization (MFU).

    python -m benchmarks.bench_step --out new.json                         # the quickstart's model, one rank
    torchrun --nproc-per-node 8 -m benchmarks.bench_step --config configs/qwen2.5-7b.yaml model.path=DIR --out new.json

It takes the trainer's own steps: vLLM, graders, ledger, update, synchronization. Of a configuration it changes what a
measurement must not depend on: no warm start, evaluation, checkpoint or resampling, one stage; and every response gets
an advantage of 1 or -1 in place of its own, which can be none, and spare its backward pass. Nothing is learnt.

FLOPs are the model's, whatever is computed twice or not at all (PaLM, arXiv 2204.02311, appendix B; here with causal
attention, and the output matrix only where a logit is needed): for P weights in the layers' matrices, hidden size H,
vocabulary V, L layers with query heads of Q numbers together, and sequences of s tokens of which r are the response's,

    a forward pass takes 2 P s + 2 H V r + 2 L Q s^2, a backward pass twice as much, generation one forward pass.

MFU is FLOPs over seconds and over the peak: a matrix product in the model's dtype, measured on all ranks at once before
each step. `compare` gets its inverse, time over the floor. Figures are those of the median step, ratios the median of
the steps' ratios. The parts of the update come from Megatron's own timers, on a GPU as events on its stream: where the
reduction overlaps (parallel.overlap), it counts only what the backward pass does not hide. The loss takes the products
of its gradients in the forward pass.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.compare import write
from benchmarks.timing import device_name
from srpo import config as configuration
from srpo.batch import Sample
from srpo.check import check
from srpo.comm import all_gather, broadcast
from srpo.config import Config
from srpo.data import toy
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.megatron.step import Trainer, init_distributed
from srpo.plan.shape import Shape
from srpo.statistics import Update
from srpo.train import Run

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
PHASES = ("rollout", "reward", "update", "sync")
PARTS = {  # of the update, by Megatron's names
    "forward": ("forward-compute",),
    "backward": ("backward-compute",),
    "reduction": ("all-grads-sync", "embedding-grads-all-reduce", "non-tensor-parallel-grads-all-reduce"),
    "optimizer": ("optimizer-copy-to-main-grad", "optimizer-clip-main-grad", "optimizer-inner-step",
                  "optimizer-copy-main-to-model-params"),
    "gather": ("params-all-gather",),
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings in place of the file's")
    parser.add_argument("--config", type=Path, help="YAML file (the quickstart's, with its model before any training)")
    parser.add_argument("--steps", type=int, default=5, help="measured, after one that is not (%(default)s)")
    parser.add_argument("--folder", type=Path, help="of the run, shared by all ranks (a temporary one)")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    layout = configuration.load(options.config or QUICKSTART, options.overrides)
    init_distributed(layout.parallel.tensor, layout.parallel.pipeline)
    with tempfile.TemporaryDirectory() as temporary:
        folder = broadcast(options.folder or Path(temporary))
        config = settings(options.config, options.overrides, options.steps + 1, folder)
        check(config, dist.get_world_size())
        measured = measure(config, options.steps)
    document = summary(measured, (options.config or QUICKSTART).stem)
    if dist.get_rank() == 0:
        print(table(document), flush=True)
        if options.out is not None:
            write(document, options.out)
    return document


def settings(file: Path | None, overrides: list[str], steps: int, folder: Path) -> Config:
    """The configuration with what a measurement must not depend on."""
    ours = [f"run={folder / 'run'}", "warm_start=null", "data.eval=[]", "eval.every=0", "resample={sampler: plain}",
            "logging.tensorboard=false", "logging.wandb=null"]
    if file is None:
        if dist.get_rank() == 0:
            toy.write(folder / "data", seed=1)
        dist.barrier()
        ours += [f"model.path={folder / 'data' / 'model'}", f"data.train=[{folder / 'data' / 'train.jsonl'}]"]
    domains = ", ".join(configuration.load(file or QUICKSTART, overrides).stages[0].domains)
    ours += [f"stages=[{{name: benchmark, domains: [{domains}], until: steps, steps: {steps}}}]"]
    return configuration.load(file or QUICKSTART, [*ours, *overrides])


# -- measuring ------------------------------------------------------------------------------------------------------


class BenchmarkRun(Run):
    """Keeps the step's samples, and lets half of them have been better than the other half."""

    samples: list[Sample]

    def update(self, step: int, problems: list[Problem], samples: list[Sample], advantage: list[float]) -> Update:
        self.samples = samples
        return super().update(step, problems, samples, [1.0 - 2 * (i % 2) for i in range(len(samples))])


class Timers:
    """What Megatron asks for as `timers`: timers("name").start() and .stop(), here without waiting for anything."""

    def __init__(self, trainer: Trainer) -> None:
        self.cuda = trainer.device.type == "cuda"
        self.spans: dict[str, list[list[Any]]] = defaultdict(list)
        (optimizer,) = trainer.optimizer.chained_optimizers
        trainer.megatron.timers = optimizer.config.timers = self

    def __call__(self, name: str, log_level: int | None = None) -> Timer:
        return Timer(self, name)

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Of each part of the update since the last call."""
        if self.cuda:
            torch.cuda.synchronize()
        total = {name: sum(a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in spans)
                 for name, spans in self.spans.items()}
        self.spans.clear()
        return {part: sum(total.get(name, 0.0) for name in names) for part, names in PARTS.items()}


@dataclass(frozen=True)
class Timer:
    timers: Timers
    name: str

    def start(self, barrier: bool = False) -> None:
        self.timers.spans[self.name].append([self.timers.now()])

    def stop(self) -> None:
        self.timers.spans[self.name][-1].append(self.timers.now())


def measure(config: Config, steps: int) -> dict[str, Any]:
    """The steps one by one, as the rank saw them that waited least for the others; the first step is not among them."""
    from srpo.rollout.engine import RolloutEngine

    run = BenchmarkRun(config)
    run.engine = RolloutEngine(config, run.trainer, run.tokenizer)
    timers, found = Timers(run.trainer), []
    for _ in range(steps + 1):
        plan = run.next_plan()
        assert plan is not None
        peak = product_rate(run.trainer)
        dist.barrier()
        metrics = run.step(plan)
        seconds = {name: metrics[f"time/{name}"] for name in (*PHASES, "step")} | timers.seconds()
        least_waiting = min(all_gather(seconds), key=lambda s: s["reward"] + s["reduction"])
        found.append({"seconds": least_waiting, "peak": sum(all_gather(peak)),
                      "tokens": sum(len(s.tokens) for s in run.samples), **flops(config, run.samples)})
    run.close()
    dist.barrier()  # rank 0 removes the folder
    device = device_name(run.trainer.device)
    return {"device": device, "dtype": config.model.dtype, "parallel": config.parallel.model_dump(), "steps": found[1:]}


def product_rate(trainer: Trainer, rounds: int = 5) -> float:
    """FLOP/s of this rank's best matrix product, all ranks at it."""
    size = 8192 if trainer.device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, dtype=trainer.dtype, device=trainer.device) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    dist.barrier()
    best = float("inf")
    for _ in range(rounds):
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def flops(config: Config, samples: Sequence[Sample]) -> dict[str, float]:
    """The model's, of a step's generation and update; log-probs of the policy before the step, or of a reference, are
    part of the update."""
    shape = Shape.of(config)
    lengths = [len(s.prompt_tokens) + len(s.tokens) for s in samples]
    forward = 2.0 * shape.matrices * sum(lengths) + 2.0 * shape.layers * shape.query * sum(n * n for n in lengths)
    forward += 2.0 * shape.hidden * shape.real_vocab * sum(len(s.tokens) for s in samples)
    before = config.batch.updates > 1 and config.algorithm.old_logprobs == "trainer"
    return {"generation": forward, "update": (3 + before + bool(config.algorithm.kl)) * forward}


# -- reporting ------------------------------------------------------------------------------------------------------


def summary(measured: dict[str, Any], name: str) -> dict[str, Any]:
    steps = measured["steps"]
    ranks = dist.get_world_size()
    seconds = {k: statistics.median(s["seconds"][k] for s in steps) for k in steps[0]["seconds"]}
    work = {"rollout": ("generation",), "update": ("update",), "step": ("generation", "update")}
    mfu = {phase: statistics.median(sum(s[k] for k in kinds) / s["seconds"][phase] / s["peak"] for s in steps)
           for phase, kinds in work.items()}
    rows = [{"case": f"{name} on {ranks}, {phase}", "implementation": "srpo", "ratios": {"to_floor": 1 / mfu[phase]}}
            for phase in work]
    return {"config": name, **measured, "threads": torch.get_num_threads(), "quick": False, "ranks": ranks,
            "load": os.getloadavg()[0], "rows": rows, "seconds": seconds, "mfu": mfu,
            "peak": statistics.median(s["peak"] for s in steps),
            "tokens_per_s_per_gpu": statistics.median(s["tokens"] / s["seconds"]["step"] for s in steps) / ranks}


def table(document: dict[str, Any]) -> str:
    seconds, ranks = document["seconds"], document["ranks"]
    rest = {"update": seconds["update"] - sum(seconds[part] for part in PARTS),
            "step": seconds["step"] - sum(seconds[phase] for phase in PHASES)}
    lines = [f"{document['device']}, {ranks} ranks of {document['threads']} threads, {document['config']} in "
             f"{document['dtype']}, load average {document['load']:.1f}",
             f"matrix products at {document['peak'] / ranks / 1e12:.3g} TFLOP/s a rank",
             f"{'':14}{'seconds':>10}{'of the step':>13}{'MFU':>8}"]

    def line(name: str, value: float, indent: str = "") -> None:
        mfu = f"{document['mfu'][name]:8.2%}" if name in document["mfu"] and not indent else ""
        lines.append(f"{indent + name:14}{value:10.3f}{value / seconds['step']:13.1%}{mfu}")

    for phase in PHASES:
        line(phase, seconds[phase])
        if phase == "update":
            for part in PARTS:
                line(part, seconds[part], "  ")
            line("other", rest["update"], "  ")
    line("other", rest["step"])
    line("step", seconds["step"])
    lines.append(f"{document['tokens_per_s_per_gpu']:,.0f} response tokens a second and rank")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmarks.bench_step: {error}", file=sys.stderr)
        sys.exit(2)
