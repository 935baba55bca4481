"""Does memory grow from step to step? And is the KV cache gone when the update needs the room?

    python -m benchmarks.bench_memory model.dtype=bfloat16 --out new.json

Takes --steps real steps (bench_step says what of a configuration it changes) and reads, in every one, the resident
memory of this process, and on a GPU what is in use on the whole device while vLLM generates and in the update, what
torch has allocated after the step and at most in it. `growth` is the largest reading of the last quarter of the steps
over the largest of the second quarter: what is set up once is there by then. Exit code 1 where something grew by more
than a hundredth, or what torch has allocated, which is with the tokens of a step, by more than a twentieth; where
weights were moved; or where the update does not find the KV cache's memory free.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.bench_step import BenchmarkRun
from benchmarks.compare import write
from benchmarks.step_memory import resident
from benchmarks.steps import name_of, parser, run_main, started, take
from benchmarks.timing import device_name
from srpo.batch import Sample
from srpo.data.schema import Problem
from srpo.statistics import Update

GROWTH = {"allocated": 1.05, "peak": 1.05}
OTHERS = 1.01
GIB = 2**30


class MemoryRun(BenchmarkRun):
    """Reads the device's memory when vLLM is awake, and when the update begins."""

    def sample(self, *arguments: Any, **options: Any) -> Any:
        sleep = self.engine.sleep

        def read_and_sleep() -> None:
            self.generating = used(self.trainer.device)
            sleep()

        self.engine.sleep = read_and_sleep  # type: ignore[method-assign]
        try:
            return super().sample(*arguments, **options)
        finally:
            self.engine.sleep = sleep  # type: ignore[method-assign]

    def update(self, step: int, problems: list[Problem], samples: list[Sample], advantage: list[float]) -> Update:
        if self.trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.updating = used(self.trainer.device)
        return super().update(step, problems, samples, advantage)


def used(device: torch.device) -> int:
    """Bytes in use on the whole device; of this process on CPU."""
    if device.type != "cuda":
        return resident("VmRSS")
    torch.cuda.empty_cache()  # what torch keeps for later is not in use
    free, total = torch.cuda.mem_get_info()
    return total - free


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parser(__doc__, 100).parse_args(arguments)
    readings: list[dict[str, int]] = []
    with started(MemoryRun, options.config, options.overrides, options.steps) as run:
        cuda = run.trainer.device.type == "cuda"
        for _ in range(options.steps):
            metrics = take(run)
            reading = {"resident": resident("VmRSS"), "aliased": metrics["weights/aliased_bytes"],
                       "moved": metrics["weights/moved_bytes"]}
            if cuda:
                reading |= {"generating": run.generating, "updating": run.updating,
                            "allocated": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}
            readings.append(reading)
        parameters = sum(p.numel() * p.element_size() for _, p in run.trainer.named_parameters())
        document: dict[str, Any] = {
            "device": device_name(run.trainer.device), "threads": torch.get_num_threads(), "quick": False,
            "ranks": dist.get_world_size(), "load": os.getloadavg()[0], "parameters": parameters,
            "kv_cache": int(run.config.rollout.kv_cache_gib * GIB), "steps": readings}
    ratios = growth(readings)
    document["rows"] = [{"case": f"memory {name_of(options.config)} {options.steps} steps", "implementation": "srpo",
                         "ratios": ratios}]
    document["wrong"] = wrong(document, ratios)
    if dist.get_rank() == 0:
        last = readings[-1]
        print("GiB in the last step: " + ", ".join(f"{name} {value / GIB:.3f}" for name, value in last.items()))
        print("growth: " + ", ".join(f"{name} {value:.4f}" for name, value in ratios.items()))
        print("; ".join(document["wrong"]) or "nothing grew, no weight was moved", flush=True)
        if options.out is not None:
            write(document, options.out)
    return document


def growth(readings: list[dict[str, int]]) -> dict[str, float]:
    """The largest of the last quarter over the largest of the second."""
    quarter = len(readings) // 4
    early, late = readings[quarter:2 * quarter] or readings, readings[-quarter:] or readings
    return {name: max(reading[name] for reading in late) / max(reading[name] for reading in early)
            for name in readings[0] if name not in ("aliased", "moved")}


def wrong(document: dict[str, Any], ratios: dict[str, float]) -> list[str]:
    """What should not be, in words."""
    found = [f"{name} grew by {ratio - 1:.1%}" for name, ratio in ratios.items() if ratio > GROWTH.get(name, OTHERS)]
    steps = document["steps"]
    if any(step["moved"] for step in steps):
        found.append(f"{max(step['moved'] for step in steps)} bytes of weights were moved in a step")
    freed = [step["generating"] - step["updating"] for step in steps if "generating" in step]
    if freed and min(freed) < 0.95 * document["kv_cache"]:
        found.append(f"the update found {min(freed) / GIB:.2f} GiB freed, the KV cache is "
                     f"{document['kv_cache'] / GIB:.2f}")
    return found


def _main() -> None:
    if main()["wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    run_main(_main, "benchmarks.bench_memory")
