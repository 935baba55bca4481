"""Programs and maths responses graded a second, and the memory of one call for a whole step's programs.

    python -m benchmarks.bench_graders --out new.json

Every program is judged in isolation of its own, sandboxes warm; maths responses go through the worker processes that a
run has. A wrong verdict ends the benchmark. No kernels and no torch: this shares nothing with the other benchmarks but
the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import math_responses
from srpo.config import Reward
from srpo.rewards import Graders, Response
from srpo.sandbox import judge_many, probe

PROGRAM = """
def primes(n):
    sieve = bytearray([1]) * (n + 1)
    found = []
    for i in range(2, n + 1):
        if sieve[i]:
            found.append(i)
            sieve[i * i::i] = bytes(len(range(i * i, n + 1, i)))
    return found
"""
EXPECTED = {10: [2, 3, 5, 7], 2: [2], 30: [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "function": (PROGRAM, {"kind": "function", "entry_point": "primes", "cases": [
        {"args": [n], "expected": found} for n, found in EXPECTED.items()]}),
    "assert": (PROGRAM, {"kind": "assert", "entry_point": "primes", "code": "\n".join(
        f"assert primes({n}) == {found}" for n, found in EXPECTED.items())}),
    "stdio, 3 runs": (PROGRAM + "print(*primes(int(input())))", {"kind": "stdio", "cases": [
        {"input": f"{n}\n", "output": " ".join(map(str, found))} for n, found in EXPECTED.items()]}),
}
STEP = 8192
"""Programs of one step: 256 prompts, 32 samples each."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    parser.add_argument("--programs", type=int, default=1000, help="in a timed call (%(default)s)")
    parser.add_argument("--responses", type=int, default=4096, help="maths responses in a timed call (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="calls, of which the median counts (%(default)s)")
    parser.add_argument("--step", type=int, default=STEP, help="programs in the call whose memory counts (%(default)s)")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {"cpu": cpu(), "isolation": probe()[0], "workers": options.workers,
                                "load": os.getloadavg()[0], "programs": {}, "maths": {}}
    print(f"{document['cpu']}, isolation {document['isolation']}, {options.workers} processes, "
          f"load average {document['load']:.1f}")

    def report(family: str, kind: str, unit: str, rates: list[float]) -> None:
        document[family][kind] = {"median": statistics.median(rates), "all": rates}
        print(f"{kind:14} {statistics.median(rates):6.0f} {unit} a second ({min(rates):.0f} to {max(rates):.0f})",
              flush=True)

    for kind, item in KINDS.items():
        report("programs", kind, "programs",
               [judged([item] * options.programs, options.workers) for _ in range(options.rounds)])
    document["step"] = step([KINDS["function"]] * options.step, options.workers)
    print("{programs} in one call: {seconds:.1f} s, {rate:.0f} a second; memory of all processes "
          "{first:.1f} MiB after a tenth, {last:.1f} MiB at the end, peak {peak:.1f} MiB".format(**document["step"]))
    graders = Graders(Reward(style="boxed"), 4096, options.workers)
    try:
        for kind in math_responses.KINDS:
            report("maths", kind, "responses", [graded(graders, math_responses.responses(kind, options.responses, seed))
                                                for seed in range(options.rounds)])
    finally:
        graders.close()
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return document


def cpu() -> str:
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[0] if names else platform.machine()


def graded(graders: Graders, items: list[tuple[Response, float]]) -> float:
    """Maths responses a second of one call."""
    started = time.perf_counter()
    grades = graders.grade([response for response, _ in items])
    seconds = time.perf_counter() - started
    wrong = [(r.text[-80:], r.problem.answer) for (r, correct), g in zip(items, grades, strict=True)
             if g.correct != correct]
    assert not wrong, wrong[0]
    return len(items) / seconds


def judged(items: list[tuple[str, dict[str, Any]]], workers: int) -> float:
    """Programs a second of one call, starting the sandboxes included."""
    started = time.perf_counter()
    verdicts = judge_many(items, workers=workers)
    seconds = time.perf_counter() - started
    wrong = [v for v in verdicts if v.passed != v.total]
    assert not wrong, wrong[0]
    return len(items) / seconds


def step(items: list[tuple[str, dict[str, Any]]], workers: int) -> dict[str, Any]:
    """One call for many programs, its memory sampled ten times a second."""
    samples: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            samples.append(memory())

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        speed = judged(items, workers)
    finally:
        done.set()
        watcher.join()
    tenth = max(1, len(samples) // 10)
    return {"programs": len(items), "rate": speed, "seconds": len(items) / speed,
            "first": statistics.median(samples[tenth:2 * tenth] or samples),
            "last": statistics.median(samples[-tenth:]), "peak": max(samples), "samples": samples}


def memory() -> float:
    """MiB of this process and the sandboxes, pages that they share counted once."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    total, new = 0, {os.getpid()}
    while new:
        total += sum(map(_share, new))
        new = {pid for pid, parent in parents.items() if parent in new}
    return total / 1024


def _share(pid: int) -> int:
    """KiB, a page of n processes counting 1/n."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0                                              # gone, or a program of another account for this moment
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
