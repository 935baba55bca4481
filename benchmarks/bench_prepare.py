"""How long `srpo prepare` takes for 100,000 rows, verification apart: reading, cleaning, rules, comparisons.

    python -m benchmarks.bench_prepare SOURCE... [--benchmark SOURCE] [--rows 100000] [--workers 2] [--out new.json]

The rows are those of the sources over and over, each pass with other numbers and some other words, so that few are
duplicates and none is short-cut. Prints the wall time, rows a second, and the peak memory of the parent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_graders import cpu
from srpo.prepare.files import files, records
from srpo.prepare.pipeline import prepare


def vary(value: Any, rng: random.Random) -> Any:
    """The same text with other numbers and one word in ten replaced; answers and tests as they were."""
    words = ("red", "blue", "seven", "table", "village", "train", "sum", "letter", "value", "point")
    text = re.sub(r"\b\d{1,3}\b", lambda m: str(rng.randrange(1, 1000)), value)
    return re.sub(r"\b[a-z]{4,9}\b", lambda m: rng.choice(words) if rng.random() < 0.1 else m[0], text)


def write(sources: list[str], rows: int, target: Path) -> None:
    rng = random.Random(0)
    originals = [record for source in sources for path in files(source) for _, record in records(path)]
    with target.open("w") as file:
        for i in range(rows):
            record = dict(originals[i % len(originals)])
            field = next(f for f in ("question", "problem", "text", "prompt") if f in record)
            record[field] = vary(record[field], rng)
            file.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_prepare", description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--benchmark", action="append", default=[], metavar="SOURCE")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.jsonl"
        write(args.sources, args.rows, raw)
        started = time.perf_counter()
        prepare([str(raw)], Path(folder) / "out", benchmarks=args.benchmark, verify=False, workers=args.workers)
        seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"cpu": cpu(), "load": load, "workers": args.workers, "rows": args.rows, "seconds": seconds,
             "rows_per_second": args.rows / seconds, "parent_gib": memory}
    print("{rows:,} rows in {seconds:.1f} s with {workers} workers: {rows_per_second:,.0f} rows/s, {parent_gib:.2f} "
          "GiB in the parent ({cpu}, load average {load:.1f} before)".format(**found))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
