"""Samplers and strategies compared on the quickstart's task, at equal rollouts: `make experiments`.

    python -m benchmarks.experiments --runs runs/experiments --out docs/experiments.md [--seeds 1 2 3] [--ranks 2]

Every arm is configs/quickstart.yaml with the settings in ARMS, run with each seed through `srpo train`; the arms of a
seed begin with the same weights, those of the first one's supervised warm start. A seed is the run's: order of the
prompts, sampling, warm start; the problems and the held-out problems are the same. What has finished is not run again.

Figures are taken where an arm has spent so many rollouts, generated ones, trained on or not: held-out accuracy from the
evaluations before and after, linearly between them. Intervals are Student's over the seeds, at 95 %; differences are
taken within a seed. Three seeds make them wide: that is what three seeds know.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.timing import device_name
from srpo.control.ledger import connect
from srpo.files import write_text

CONFIG = "configs/quickstart.yaml"
STEPS, FIRST = 40, 12
"""Steps of an arm, and of the first stage where there are two."""
SETTINGS = ["eval.every=4", "eval.samples=8", "checkpoint.every=0", "logging.tensorboard=false"]
STAGED = (f"[{{name: maths, domains: [math], until: steps, steps: {FIRST}}},"
          f" {{name: both, domains: [math, code], until: steps, steps: {STEPS - FIRST}}}]")


def _one(*domains: str) -> str:
    return f"[{{name: all, domains: [{', '.join(domains)}], until: steps, steps: {STEPS}}}]"


ARMS = {
    "history": [f"stages={STAGED}"],
    "returning": [f"stages={STAGED}", "resample.epochs=2"],
    "plain": [f"stages={STAGED}", "resample={sampler: plain}"],
    "dynamic": [f"stages={STAGED}", "resample={sampler: dynamic}"],
    "mixed": [f"stages={_one('math', 'code')}"],
    "maths only": [f"stages={_one('math')}"],
    "code only": [f"stages={_one('code')}"],
}
SAMPLERS = ["history", "returning", "plain", "dynamic"]
STRATEGIES = ["history", "mixed", "maths only", "code only"]
"""SRPO's is the arm "history": two stages."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantile of Student's t for n seeds, n - 1 degrees of freedom."""


@dataclass(frozen=True)
class Step:
    """What a run had spent, and what had come of it, after one step; step 0 is the beginning. Sums over the steps."""

    rollouts: int
    groups: int
    informative: int
    """Groups whose rollouts differ in reward, on which alone there is something to learn from."""
    unused: int
    """Rollouts without a gradient: thrown away by the sampler, or of one reward with their whole group."""
    seconds: float
    accuracy: dict[str, float] | None
    """Held-out avg@k by domain, where it was measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, default=2, help="of a run (%(default)s)")
    options = parser.parse_args()
    if len(set(options.seeds)) < len(options.seeds) or len(options.seeds) > max(STUDENT):
        parser.error(f"--seeds: give different ones, {max(STUDENT)} at most")
    for seed in options.seeds:
        for arm in ARMS:
            launch(options.runs, arm, seed, options.ranks)
    runs = {arm: [read(folder(options.runs, arm, seed)) for seed in options.seeds] for arm in ARMS}
    write_text(options.out, document(runs, options.seeds, options.ranks))
    print(f"{options.out}: written")


def folder(runs: Path, arm: str, seed: int) -> Path:
    return runs / f"{arm.replace(' ', '-')}-{seed}"


def launch(runs: Path, arm: str, seed: int, ranks: int) -> None:
    run = folder(runs, arm, seed)
    if (run / "hf").exists():
        print(f"{run}: finished before")
        return
    warm = folder(runs, next(iter(ARMS)), seed) / "warm"
    if warm.exists() and not run.exists():
        part = run.with_name(f"{run.name}.part")  # a run would take half a warm start for a whole one
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(warm, part / "warm")
        part.rename(run)
    print(f"{run}: training", flush=True)
    runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m", "srpo", "train",
               CONFIG, f"run={run}", f"seed={seed}", *SETTINGS, *ARMS[arm]]
    log = runs / f"{run.name}.log"
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        sys.exit(f"{run}: failed with exit code {code}; see {log}")


# -- reading ----------------------------------------------------------------------------------------------------------


def read(run: Path) -> list[Step]:
    """A run's steps, from step 0."""
    with closing(connect(run)) as db:
        spent = {step: row for step, *row in db.execute(
            "SELECT step, SUM(samples), COUNT(*), SUM(spread > 0), SUM(samples * (NOT trained OR spread = 0)) "
            "FROM prompts GROUP BY step")}
    steps: list[Step] = []
    rollouts = groups = informative = unused = 0
    seconds = 0.0
    for line in (run / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        row = spent.get(metrics["step"], (0, 0, 0, 0))
        rollouts, groups, informative, unused = (
            total + more for total, more in zip((rollouts, groups, informative, unused), row, strict=True))
        seconds += metrics.get("time/step", 0.0)
        scores = {key.removeprefix("eval/"): value for key, value in metrics.items() if key.startswith("eval/")}
        steps.append(Step(rollouts, groups, informative, unused, seconds, scores or None))
    return steps


def at(steps: Sequence[Step], rollouts: float, value: Callable[[Step], float | None]) -> float:
    """A figure where a run has spent so many rollouts, linear between the steps that have the figure."""
    known = [(s.rollouts, v) for s in steps if (v := value(s)) is not None]
    for (x0, y0), (x1, y1) in zip(known, known[1:], strict=False):
        if x0 <= rollouts <= x1:
            return y0 + (y1 - y0) * (rollouts - x0) / (x1 - x0)
    raise ValueError(f"a run has figures from {known[0][0]} to {known[-1][0]} rollouts, not at {rollouts}")


def accuracy(domain: str | None) -> Callable[[Step], float | None]:
    """Held-out accuracy in a domain; without one, their mean."""
    def value(step: Step) -> float | None:
        if step.accuracy is None:
            return None
        return step.accuracy[domain] if domain else fmean(step.accuracy.values())
    return value


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval."""
    half = STUDENT[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return fmean(values), half


# -- writing ----------------------------------------------------------------------------------------------------------


def document(runs: dict[str, list[list[Step]]], seeds: Sequence[int], ranks: int) -> str:
    budget, shorter = (min(steps[-1].rollouts for arm in arms for steps in runs[arm])
                       for arms in (SAMPLERS, STRATEGIES))
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    how = (f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), {ranks} ranks on {device}, torch {torch.__version__}. "
           "Every figure is a mean over the seeds with its 95 % interval.")
    return "\n".join([
        "# Samplers and strategies on the toy task", "",
        "Made by `make experiments`; `benchmarks/experiments.py` says what is compared and how. Nothing is left out",
        "or chosen: this is what one run of it gave. The task is the quickstart's (sums of three, functions of x)",
        "with 128 problems a domain and a model of 0.8 M parameters: it says how the methods differ where problems are",
        "soon mastered, and nothing about sizes, lengths or data that people train on.", "", how, "",
        f"## Samplers, after {budget:,} rollouts", "",
        "Two stages, maths and then both, with each sampler; `returning` is history resampling with prompts that come",
        "back after two epochs.", "", *table(runs, SAMPLERS, budget), "",
        "Held-out accuracy, mean of both domains, on the way:", "", *curve(runs, SAMPLERS, budget), "",
        "Difference to history resampling, seed by seed, in points:", "", *differences(runs, SAMPLERS, budget), "",
        f"## Strategies, after {shorter:,} rollouts", "",
        "History resampling, with each choice of stages; `staged` is the arm `history` of above.", "",
        *table(runs, STRATEGIES, shorter), "", "Held-out accuracy, mean of both domains, on the way:", "",
        *curve(runs, STRATEGIES, shorter), "", "Difference to two stages, seed by seed, in points:", "",
        *differences(runs, STRATEGIES, shorter), "",
        "## How each arm ended", "",
        f"After {STEPS} updates, or when resampling had left no prompt.", "", *ends(runs), ""])


def table(runs: dict[str, list[list[Step]]], arms: Sequence[str], budget: int) -> Iterator[str]:
    columns: dict[str, Callable[[list[Step]], float]] = {
        "maths, %": lambda s: 100 * at(s, budget, accuracy("math")),
        "code, %": lambda s: 100 * at(s, budget, accuracy("code")),
        "informative groups, %": lambda s: 100 * at(s, budget, lambda x: x.informative)
                                           / at(s, budget, lambda x: x.groups),
        "rollouts without a gradient, %": lambda s: 100 * at(s, budget, lambda x: x.unused) / budget,
        "updates": lambda s: at(s, budget, lambda x: s.index(x)),
        "seconds": lambda s: at(s, budget, lambda x: x.seconds),
    }
    return rows(["", *columns], (
        (name(arm, arms), [show(interval([f(s) for s in runs[arm]])) for f in columns.values()]) for arm in arms))


def curve(runs: dict[str, list[list[Step]]], arms: Sequence[str], budget: int) -> Iterator[str]:
    points = [budget * quarter // 4 for quarter in range(5)]
    return rows(["rollouts", *(f"{p:,}" for p in points)], (
        (name(arm, arms), [show(interval([100 * at(s, p, accuracy(None)) for s in runs[arm]])) for p in points])
        for arm in arms))


def differences(runs: dict[str, list[list[Step]]], arms: Sequence[str], budget: int) -> Iterator[str]:
    def difference(arm: str, domain: str | None) -> str:
        pairs = zip(runs[arm], runs[arms[0]], strict=True)
        return show(interval([100 * (at(a, budget, accuracy(domain)) - at(b, budget, accuracy(domain)))
                              for a, b in pairs]))

    return rows(["", "maths", "code", "mean"], ((name(arm, arms), [difference(arm, d) for d in ("math", "code", None)])
                                                for arm in arms[1:]))


def ends(runs: dict[str, list[list[Step]]]) -> Iterator[str]:
    columns: dict[str, Callable[[list[Step]], float]] = {
        "maths, %": lambda s: 100 * at(s, s[-1].rollouts, accuracy("math")),
        "code, %": lambda s: 100 * at(s, s[-1].rollouts, accuracy("code")),
        "rollouts": lambda s: s[-1].rollouts,
        "updates": lambda s: len(s) - 1,
    }
    return rows(["", *columns], (
        (arm, [", ".join(f"{f(s):,.0f}" for s in runs[arm]) for f in columns.values()]) for arm in ARMS))


def name(arm: str, arms: Sequence[str]) -> str:
    return "staged" if arm == "history" and arms is STRATEGIES else arm


def show(figure: tuple[float, float]) -> str:
    mean, half = figure
    return f"{mean:.1f} ± {half:.1f}"


def rows(head: Sequence[str], body: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for label, cells in body:
        yield f"| {label} | {' | '.join(cells)} |"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
