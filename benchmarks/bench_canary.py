"""What rollout.canary has to tell apart: |trainer - rollout| log-probs of sampled tokens, weights being right or wrong.

    python -m benchmarks.bench_canary model.dtype=bfloat16 --out new.json
    python -m benchmarks.bench_canary --config configs/smollm2.yaml model.dtype=bfloat16 --out new.json

Takes --steps real steps (bench_step says what of a configuration it changes), then three in which the trainer's weights
are changed between generation and update, as if vLLM had generated with others: set back by one update, one matrix off
by a hundredth, and one with its rows shifted by one, as where a slice is taken at the wrong place. Nothing else of the
steps differs. The canary looks at the largest mean over the tokens of a prompt; `worst_prompt_to_threshold` is that
with the right weights over rollout.canary: above 1 a good run would have stopped. A threshold serves where it lies
above the right weights' worst prompt and below that of wrong ones; what stays below it, the canary cannot see.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from srpo_kernels import PolicyLossMetrics

from benchmarks.bench_step import QUICKSTART, BenchmarkRun
from benchmarks.compare import write
from benchmarks.steps import name_of, parser, run_main, started, take
from benchmarks.timing import device_name
from srpo import config as configuration
from srpo.batch import Sample
from srpo.comm import all_gather
from srpo.config import Config
from srpo.data.schema import Problem
from srpo.statistics import Update, by_prompt

QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
RIGHT = "same weights"


class CanaryRun(BenchmarkRun):
    """Keeps the differences of each step, and changes weights where it is told to, once vLLM has generated."""

    change: Callable[[CanaryRun], None] | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.differences: list[np.ndarray] = []
        self.worst_prompt = 0.0
        self.trainer.forward_backward = self._kept(self.trainer.forward_backward)  # type: ignore[method-assign]

    def _kept(self, function: Callable[..., list[PolicyLossMetrics]]) -> Callable[..., list[PolicyLossMetrics]]:
        def call(*arguments: Any) -> list[PolicyLossMetrics]:
            metrics = function(*arguments)
            self.differences += [m.rollout_diff.float().cpu().numpy() for m in metrics if m.rollout_diff is not None]
            return metrics
        return call

    def update(self, step: int, problems: list[Problem], samples: list[Sample], advantage: list[float]) -> Update:
        before = [parameter.detach().clone() for _, parameter in self.trainer.named_parameters()]
        if self.change is not None:
            self.change(self)
        self.before = before
        update = super().update(step, problems, samples, advantage)
        prompts = by_prompt(update.diffs, self.config.batch.samples).values()
        self.worst_prompt = max(diff.total / diff.tokens for diff in prompts)
        return update

    @torch.no_grad()
    def set_back(self) -> None:
        for (_, parameter), before in zip(self.trainer.named_parameters(), self.before, strict=True):
            parameter.copy_(before)

    @torch.no_grad()
    def spoil(self) -> None:
        self.a_matrix().mul_(1.01)

    @torch.no_grad()
    def shift(self) -> None:
        self.a_matrix().copy_(self.a_matrix().roll(1, 0))

    def a_matrix(self) -> torch.Tensor:
        return next(p for name, p in self.trainer.named_parameters() if name.endswith("mlp.linear_fc2.weight"))

    def taken(self) -> np.ndarray:
        """The differences of all ranks' tokens since the last call."""
        mine = np.concatenate(self.differences) if self.reports and self.differences else np.zeros(0, np.float32)
        self.differences = []
        return np.concatenate(all_gather(mine))


WRONG = {"weights of one update before": CanaryRun.set_back, "one matrix 1 % off": CanaryRun.spoil,
         "one matrix's rows shifted": CanaryRun.shift}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parser(__doc__, 10).parse_args(arguments)
    threshold = configuration.load(options.config or QUICKSTART, options.overrides).rollout.canary
    overrides = [*options.overrides, "rollout.canary=1e9"]  # it is to be looked at, not to end the run
    with started(CanaryRun, options.config, overrides, options.steps + len(WRONG)) as run:
        found: dict[str, list[np.ndarray]] = {name: [] for name in (RIGHT, *WRONG)}
        worst: dict[str, list[float]] = {name: [] for name in (RIGHT, *WRONG)}
        for name in [RIGHT] * options.steps + [*WRONG]:
            run.change = WRONG.get(name)
            take(run)
            found[name].append(run.taken())
            worst[name].append(run.worst_prompt)
        device = device_name(run.trainer.device)
        dtype = run.config.model.dtype
    figures = {name: distribution(steps) | {"worst prompt": max(worst[name])} for name, steps in found.items()}
    row = {"case": f"canary {name_of(options.config)} {dtype}", "implementation": "srpo",
           "ratios": {"worst_prompt_to_threshold": figures[RIGHT]["worst prompt"] / threshold}}
    document = {"device": device, "threads": torch.get_num_threads(), "quick": False, "ranks": dist.get_world_size(),
                "load": os.getloadavg()[0], "dtype": dtype, "threshold": threshold, "rows": [row],
                "distributions": figures}
    if dist.get_rank() == 0:
        print(table(document), flush=True)
        if options.out is not None:
            write(document, options.out)
    return document


def distribution(steps: list[np.ndarray]) -> dict[str, Any]:
    """Of all steps' tokens, and the largest of each step."""
    tokens = np.concatenate(steps)
    quantiles = dict(zip(map(str, QUANTILES), np.quantile(tokens, QUANTILES).tolist(), strict=True))
    return {"tokens": len(tokens), "mean": float(tokens.mean()), **quantiles, "max": float(tokens.max()),
            "max_of_steps": [float(step.max()) for step in steps]}


def table(document: dict[str, Any]) -> str:
    columns = ["mean", *map(str, QUANTILES), "max", "worst prompt"]
    lines = [f"{document['device']}, {document['dtype']}; rollout.canary {document['threshold']:g}",
             f"{'|trainer - rollout|':32}{'tokens':>8}" + "".join(f"{column:>13}" for column in columns)]
    lines += [f"{name:32}{found['tokens']:8}" + "".join(f"{found[column]:13.2g}" for column in columns)
              for name, found in document["distributions"].items()]
    good = document["distributions"][RIGHT]["worst prompt"]
    seen = [name for name in WRONG if document["distributions"][name]["worst prompt"] > document["threshold"]]
    lines.append(f"a good run reaches {good / document['threshold']:.2g} of the threshold; wrong weights that it sees: "
                 + (", ".join(seen) or "none"))
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main, "benchmarks.bench_canary")
