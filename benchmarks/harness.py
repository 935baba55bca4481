"""Measures cases: every implementation in every round, side by side with the device's ceilings; table and JSON."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import compare, timing
from benchmarks.gpu_host import commit
from benchmarks.inputs import Case, Inputs, Rewards, leaves_of
from benchmarks.peers import ADVANTAGE, EAGER, IMPLEMENTATIONS, OURS, Implementation, Unavailable, installed
from benchmarks.report import table

MIN_ROUNDS, MAX_ROUNDS = 5, 100
# Up to here launches may take longer than the kernels. Others that look at a value on the host while they are captured,
# and group_advantage, which does, would leave torch in the middle of a capture.
GRAPH_ROWS = 16
PATIENCE = 3  # times --seconds, for a slow peer
MODES = ("warm", "cold")
BUSY = 0.5  # one-minute load average, before anything was measured


@dataclass
class Bench:
    """One bench file: its cases, and what the device cannot avoid doing in each."""

    name: str
    cases: Callable[[str, bool], list[Case]]
    """(device type, quick) -> cases"""
    work: Callable[[Case], dict[str, float]]
    """Bytes, flop or launches by kind of ceiling (timing.Ceilings); the floor is their time, one after the other."""
    floor: str
    """In words."""
    after: Callable[[Session], dict[str, Any]] | None = None
    """More measurements, printed as they come and recorded under "checks"."""


class Run:
    """One implementation on one case, ready to be called again and again."""

    def __init__(self, implementation: Implementation, x: Inputs | Rewards, reuse: bool = False) -> None:
        self._x = x
        self._backward = x.case.backward
        self._call = implementation.call(x, reuse)
        self._pristine = self._call.arguments
        self._arguments = self._pristine
        if self._backward:
            # The common layout's copy is shared: an implementation may hold the card's whole memory while it runs.
            self._arguments = x.leaves if self._pristine is x.arguments else leaves_of(x.case, self._pristine)

    def restore(self) -> None:
        if self._backward and not self._x.case.hidden:
            for argument, pristine in zip(self._arguments, self._pristine, strict=True):
                argument.detach().copy_(pristine)

    def __call__(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self._backward:
            with torch.no_grad():
                return self._call.function(*self._arguments), ()
        # As if a layer had made them, because a leaf must not be written over; grad() and not backward(), which would
        # add a copy.
        views = [_Made.apply(argument) if argument.requires_grad else argument for argument in self._arguments]
        value = self._call.function(*views)
        return value, torch.autograd.grad(value, [view for view in views if view.requires_grad], self._x.grad_output)

    def errors(self) -> tuple[float, float | None]:
        self.restore()
        value, gradients = self()
        if not self._backward:
            return self._x.value_error(value), None
        return self._x.value_error(value), self._x.gradient_error(self._call.packed(gradients))


class _Made(torch.autograd.Function):
    """A tensor that autograd takes for the output of an operation: nothing is copied."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Session:
    """Everything that is measured in one process, on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        self.stream = timing.QUICK_STREAM if options.quick else timing.STREAM[self.device.type]
        self.clock = timing.Clock(self.device, self.stream)
        self._budget = 0.0 if options.quick else options.seconds
        self.rows: list[dict[str, Any]] = []
        self.checks: dict[str, Any] = {}
        self._load = os.getloadavg()[0]
        if self._load > BUSY:
            print(f"load average {self._load:.1f}: something else is running here, expect noise")

    def bench(self, bench: Bench) -> None:
        print(f"\n{bench.name}; floor: {bench.floor}")
        for case in self._selected(bench.cases(self.device.type, self.options.quick)):
            rows = self.measure(case, bench.work(case))
            print(table(case, rows), flush=True)
            self.rows += rows
            self.write()
        if bench.after is not None and not self.options.filter and not self.options.shapes:
            self.checks |= bench.after(self)
            self.write()

    def skips(self, name: str) -> bool:
        return bool(self.options.skip and re.search(self.options.skip, name))

    def _selected(self, cases: Iterable[Case]) -> list[Case]:
        cases = [case for case in cases if re.search(self.options.filter, case.label)]
        if self.options.shapes:
            shapes = [[int(size) for size in shape.split("x")] for shape in self.options.shapes.split(",")]
            kinds = dict.fromkeys(replace(case, rows=0, vocab=0, hidden=0) for case in cases)
            cases = [replace(kind, rows=rows, vocab=vocab, hidden=hidden)
                     for rows, vocab, hidden in (shape + [0] * (3 - len(shape)) for shape in shapes) for kind in kinds]
        return cases

    def measure(self, case: Case, work: dict[str, float], only: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """A row for each implementation of the case's op; one that cannot run has a "reason" instead of figures."""
        torch.compiler.reset()  # a function is compiled for a few cases only, then runs eagerly
        x = (Rewards if case.op in ADVANTAGE else Inputs)(case, self.device)
        rows: dict[str, dict[str, Any]] = {}
        runs: dict[str, dict[str, Run]] = {}
        for implementation in IMPLEMENTATIONS:
            name = implementation.name
            if case.op not in implementation.ops or (only and name not in only) or self.skips(name):
                continue
            rows[name] = asdict(case) | {"case": case.label, "implementation": name}
            with _Reported(name, rows[name]):
                run = Run(implementation, x)
                rows[name]["value_error"], rows[name]["gradient_error"] = run.errors()
                run.restore()
                rows[name]["peak_memory"] = timing.peak_memory(run, self.device)
                best = Run(implementation, x, reuse=True) if implementation.reuses else run
                runs[name] = {"warm": best, "cold": run}
        ceilings = timing.Ceilings(self.clock, set(work), self.stream, x.arguments if "matrix" in work else ())
        samples = self._rounds(runs, rows, ceilings)
        for name in runs:
            if "reason" not in rows[name]:
                rows[name] |= _figures(samples, name, work)
                if self.device.type == "cuda" and name in (OURS, EAGER) and case.rows <= GRAPH_ROWS:
                    rows[name]["graph"] = timing.graph_seconds(runs[name]["warm"], self.clock)
        return list(rows.values())

    def _rounds(
        self, runs: dict[str, dict[str, Run]], rows: dict[str, dict[str, Any]], ceilings: timing.Ceilings
    ) -> list[dict[str, Any]]:
        """Rounds of everything, until the time is spent: what disturbs the machine disturbs all of a round alike."""
        samples: list[dict[str, Any]] = []
        spent = dict.fromkeys(runs, 0.0)
        enough = self._budget * len(runs)
        while len(samples) < MIN_ROUNDS or (sum(spent.values()) < enough and len(samples) < MAX_ROUNDS):
            sample: dict[str, Any] = {"ceilings": ceilings.sample()}
            # A peer that is far slower than the rest does not take part in every round.
            names = [name for name in runs if "reason" not in rows[name]
                     and (name in (OURS, EAGER) or spent[name] <= PATIENCE * self._budget)]
            first = len(samples) % max(1, len(names))
            for name in names[first:] + names[:first]:
                with _Reported(name, rows[name]):
                    sample[name] = {mode: self._one(runs[name][mode], mode) for mode in MODES}
                    spent[name] += 2 * sample[name]["warm"] + sample[name]["cold"]
            samples.append(sample)
        return samples

    def _one(self, run: Run, mode: str) -> float:
        if mode == "warm":
            run.restore()
            run()
        run.restore()
        if mode == "cold":
            self.clock.chill()
        return self.clock(run)

    def document(self) -> dict[str, Any]:
        packages = sorted({"torch", "triton"} | {each.package for each in IMPLEMENTATIONS if each.package is not None})
        measured: dict[str, float] = {}
        for row in self.rows:
            for kind, rate in row.get("ceilings", {}).items():
                measured[kind] = max(rate, measured.get(kind, 0.0))
        return {
            "device": timing.device_name(self.device), "threads": torch.get_num_threads(), "quick": self.options.quick,
            "versions": {package: installed(package) for package in packages},
            "commit": commit(), "ceilings": measured, "load": [self._load, os.getloadavg()[0]],
            "clocks": timing.clocks(self.device), "checks": self.checks, "rows": self.rows,
        }

    def write(self) -> None:
        """After each case: what was measured outlives what comes next."""
        if self.options.out is not None:
            compare.write(self.document(), self.options.out)


class _Reported:
    """Turns what a peer raises into its row's reason. Ours must run: its errors propagate."""

    def __init__(self, name: str, row: dict[str, Any]) -> None:
        self._name, self._row = name, row

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception) or self._name == OURS:
            return False
        known = isinstance(error, Unavailable)
        self._row["reason"] = str(error) if known else f"failed: {type(error).__name__}: {_first_line(error)}"
        return True


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:160]


def _figures(samples: list[dict[str, Any]], name: str, work: dict[str, float]) -> dict[str, Any]:
    """Medians over rounds, and of the ratios within a round."""
    samples = [sample for sample in samples if name in sample]
    floors = [sum(work[kind] / rate for kind, rate in sample["ceilings"].items()) for sample in samples]
    figures: dict[str, Any] = {
        "rounds": len(samples), "floor": median(floors), "work": work,
        "ceilings": {kind: median(sample["ceilings"][kind] for sample in samples) for kind in work},
    }
    for mode in MODES:
        times = [sample[name][mode] for sample in samples]
        eager = [sample[name][mode] / sample[EAGER][mode] for sample in samples if EAGER in sample]
        figures[mode] = {
            "median": median(times), "min": min(times),
            "to_floor": median(time / floor for time, floor in zip(times, floors, strict=True)),
            "to_eager": median(eager) if eager else None,
        }
    return figures


def parser(description: str | None) -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    arguments.add_argument("--threads", type=int, help="CPU threads")
    arguments.add_argument("--quick", action="store_true", help="small shapes; shows that it runs, measures nothing")
    arguments.add_argument("--shapes", help="instead of the default ones: NxV or, for linear, NxVxH, with commas")
    arguments.add_argument("--filter", default="", metavar="REGEX", help="only cases whose label matches")
    arguments.add_argument("--skip", default="", metavar="REGEX", help="not the implementations whose name matches")
    arguments.add_argument("--seconds", type=float, default=1.0, help="for each implementation of a case (%(default)s)")
    arguments.add_argument("--out", type=Path, help="write everything as JSON")
    return arguments


def main(benches: list[Bench], description: str | None, arguments: list[str] | None = None) -> dict[str, Any]:
    options = parser(description).parse_args(arguments)
    logging.getLogger("srpo_kernels").setLevel(logging.ERROR)  # group_advantage warns of groups of one at every call
    session = Session(options)
    print(f"{timing.device_name(session.device)}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for bench in benches:
        session.bench(bench)
    return session.document()
