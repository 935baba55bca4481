"""How long a step waits for the ledger, how long an epoch's end takes, and what resuming costs.

    python -m benchmarks.bench_ledger --out new.json
    python -m benchmarks.bench_ledger --prompts 100000      # a tenth of the epoch, half a minute

A curriculum runs a whole epoch of 1,000,000 prompts x 32 rollouts in steps of 256 prompts, every rollout a row as in a
run, with random grades of prompts whose pass rates are Beta(0.5, 0.5): a third of them are mastered. Timed are

- append: recording a step's 8,192 rows, commit to the disk included. Bare: the same rows in one transaction of another
  file, a table without a prompt's summary, a check, or anything else.
- close: the call that closes the epoch, decides about every prompt, and opens and shuffles the next. Bare: SQLite
  reading every prompt's outcome and writing a decision about each, without Python deciding anything.
- resume: a new curriculum taking up the finished epoch. Bare: SQLite reading what the ledger knows of every prompt.

Memory is the growth of the process's peak during the call. Takes 3 GB of disk and some 5 minutes; figures are of the
disk that --folder is on.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.bench_graders import cpu
from benchmarks.compare import write
from srpo.config import Resample, Stage
from srpo.control import Curriculum, Ledger, RolloutRow, StepPlan

PROMPTS, SAMPLES, STEP = 1_000_000, 32, 256
STAGES = [Stage(name="stage", domains=["math", "code"], until="epochs", epochs=3)]
ROUND = 20
"""One step in so many is timed bare, too."""
REPEATS = 3
LIMITS = {"append": 0.05, "close": 5.0}
"""Seconds, for a step of 8,192 rows and an epoch of 1,000,000 prompts."""

Times = dict[str, list[float]]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of the epoch (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the ledger is for a while (the temporary files')")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.prompts)
    for row in rows:
        limit = LIMITS.get(row["case"].split()[0])
        late = f", {limit * 1e3:.0f} ms wanted" if limit and row["seconds"] > limit else ""
        print(f"{row['case']:26} {row['seconds'] * 1e3:9.1f} ms (worst {row['worst'] * 1e3:.1f}), "
              f"{row['ratios']['to_bare']:.2f} of bare, {row['peak_mib']:6.1f} MiB{late}")
    size = rows[0]["bytes"] / (options.prompts * SAMPLES)
    print(f"the ledger has {size:.0f} bytes a rollout, {size / 10:.1f} GB for a hundred million ({cpu()}, load average "
          f"{load:.1f} before)")
    document = {"benchmark": "ledger", "device": cpu(), "threads": 1, "quick": options.prompts != PROMPTS, "load": load,
                "rows": rows}
    if options.out is not None:
        write(document, options.out)
    return document


def measure(folder: Path, prompts: int) -> list[dict[str, Any]]:
    problems = {f"dapo-math-{i:07d}": "code" if i % 3 else "math" for i in range(prompts)}
    file = folder / "ledger.sqlite"
    with closing(Ledger(file)) as ledger, closing(bare_table(folder / "bare.sqlite")) as bare:
        curriculum = Curriculum(problems, STAGES, Resample(), STEP, 0, ledger)
        append, peak = run_epoch(curriculum, math.ceil(prompts / STEP), bare)
        state = curriculum.state_dict()
        close: Times = {"srpo": [], "bare": []}
        for _ in range(REPEATS):
            close["bare"].append(timed(bare_close, bare, file)[0])
            curriculum.load_state_dict(state)
            seconds, growth = timed(curriculum.next)
            close["srpo"].append(seconds)
        closed = curriculum.state_dict()
        del curriculum
        resume: Times = {"srpo": [], "bare": []}
        for _ in range(REPEATS):
            resume["bare"].append(timed(bare_resume, file)[0])
            again = Curriculum(problems, STAGES, Resample(), STEP, 0, ledger)
            seconds, taken = timed(again.load_state_dict, closed)
            resume["srpo"].append(seconds)
    return [row(f"append {STEP * SAMPLES}", append, peak, statistics.median) | {"bytes": file.stat().st_size},
            row(f"close {prompts}", close, growth, min), row(f"resume {prompts}", resume, taken, min)]


def row(case: str, times: Times, peak: float, typical: Callable[[Iterable[float]], float]) -> dict[str, Any]:
    seconds, bare = typical(times["srpo"]), typical(times["bare"])
    return {"case": case, "implementation": "srpo", "ratios": {"to_bare": seconds / bare}, "seconds": seconds,
            "worst": max(times["srpo"]), "bare": bare, "peak_mib": peak}


def run_epoch(curriculum: Curriculum, steps: int, bare: sqlite3.Connection) -> tuple[Times, float]:
    """Record every step of the epoch; seconds of each, and how much memory the last of them took."""
    rng = random.Random(0)
    times: Times = {"srpo": [], "bare": []}
    growth = 0.0
    for _ in range(steps):
        plan = curriculum.next()
        assert plan is not None and plan.epoch == 1
        rows = list(rollouts(plan, rng))
        if plan.step % ROUND == 1:
            times["bare"].append(timed(bare_append, bare, rows)[0])
        seconds, growth = timed(curriculum.record, plan, rows)
        times["srpo"].append(seconds)
    return times, growth


def rollouts(plan: StepPlan, rng: random.Random) -> Iterator[RolloutRow]:
    for prompt in plan.prompt_ids:
        rate = rng.betavariate(0.5, 0.5)
        rate = 1.0 if rate > 0.75 else rate
        for sample in range(SAMPLES):
            correct = float(rng.random() < rate)
            yield RolloutRow(plan.epoch, plan.step, plan.stage, prompt, sample, "math", correct, correct - 0.1,
                             int(rng.random() * 4096), False)


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Seconds, and the growth of the process's peak memory in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is resident now
    before = memory("VmRSS")
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began, memory("VmHWM") - before


def memory(field: str) -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


# -- what SQLite takes by itself ------------------------------------------------------------------------------------


def bare_table(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("PRAGMA journal_mode = TRUNCATE")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE rollouts (epoch, step, stage, prompt_id, sample, domain, correct, reward, tokens, "
               "truncated)")
    db.execute("CREATE TABLE decisions (epoch, prompt_id, decision, reason, until)")
    return db


def bare_append(db: sqlite3.Connection, rows: list[RolloutRow]) -> None:
    db.execute("BEGIN")
    db.executemany("INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (
        (r.epoch, r.step, r.stage, r.prompt_id, r.sample, r.domain, r.correct, r.reward, r.tokens, r.truncated)
        for r in rows))
    db.execute("COMMIT")


def bare_close(db: sqlite3.Connection, ledger: Path) -> None:
    """Reads the ledger, writes into another file."""
    with closing(sqlite3.connect(ledger)) as source:
        outcomes = source.execute("SELECT epoch, prompt_id, samples, correct, mixed FROM prompts")
        db.execute("BEGIN")
        db.executemany("INSERT INTO decisions VALUES (?, ?, ?, ?, ?)", outcomes)
        db.execute("COMMIT")


def bare_resume(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as source:
        for query in ("SELECT prompt_id, until FROM decisions", "SELECT prompt_id, tokens, samples FROM prompts"):
            for _ in source.execute(query):
                pass


if __name__ == "__main__":
    main()
