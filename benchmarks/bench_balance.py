"""How evenly work of a long-tailed length distribution is divided, and how long dividing it takes.

    python -m benchmarks.bench_balance --out new.json

Makespan, the load of the fullest of 8 and 64 replicas, over its lower bound: the mean load or the longest item. Three
kinds of items, every length log-normal with sigma 1:

- responses: 8,192, as they are divided among the ranks of an update.
- prompts: 256 groups of 32 responses, as a rollout is, if lengths were known beforehand. A prompt's own mean and the
  spread of its responses have half of the variance each.
- forecast: the same, divided by the mean length that another 32 responses to each prompt had (the ledger's, of the
  epoch before, here by an unchanged policy). What is left is what nobody can know.

And micro-batches: the passes of all ranks under a budget of 16,384 tokens, over the fewest that the tokens need; the
items are the responses, of 100 to 16,384 tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_graders import cpu
from benchmarks.compare import write
from srpo.balance import assign, assign_within

PROMPTS, SAMPLES, REPLICAS = 256, 32, (8, 64)
SEEDS = 20
"""Steps that are drawn; figures are means of the ratios in each."""
BUDGET = 16_384
MEDIAN = 600
"""Tokens of a response."""
LIMIT = 1.05
"""Of the bound, where lengths are known."""

Assignment = list[list[int]]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for replicas in REPLICAS:
        steps = [draw(seed) for seed in range(SEEDS)]
        responses = [[length for group in groups for length in group] for groups, _ in steps]
        totals = [[sum(group) for group in groups] for groups, _ in steps]
        means = [[statistics.fmean(group) for group in before] for _, before in steps]
        rows += measure(f"responses {PROMPTS * SAMPLES} on {replicas}", responses, responses, replicas)
        rows += measure(f"prompts {PROMPTS} on {replicas}", totals, totals, replicas)
        rows += measure(f"forecast {PROMPTS} on {replicas}", totals, means, replicas)
        rows.append(micro_batches(responses, replicas))
        print(f"{rows[-1]['case']:28} {rows[-1]['ratios']['to_fewest']:.4f} of the fewest, "
              f"{rows[-1]['seconds'] * 1e3:.0f} ms")
    for row in rows:
        known = row["implementation"] == "srpo" and not row["case"].startswith(("forecast", "micro"))
        assert not known or row["worst"] <= LIMIT, row
    document = {"device": cpu(), "threads": 1, "quick": False, "rows": rows}
    if options.out is not None:
        write(document, options.out)
    return document


def draw(seed: int) -> tuple[list[list[float]], list[list[float]]]:
    """Lengths of the responses to each prompt in a step, and in the epoch before."""
    rng = random.Random(seed)
    spread = 0.5**0.5
    means = [rng.lognormvariate(0, spread) for _ in range(PROMPTS)]

    def groups() -> list[list[float]]:
        return [[mean * rng.lognormvariate(0, spread) for _ in range(SAMPLES)] for mean in means]

    return groups(), groups()


def measure(case: str, actual: list[list[float]], expected: list[list[float]], replicas: int) -> list[dict[str, Any]]:
    """Dividing by the expected lengths, judged by the actual ones."""
    ways: dict[str, Callable[[Sequence[float], int, random.Random], Assignment]] = {
        "srpo": lambda lengths, bins, _: assign(lengths, bins), "round robin": round_robin, "random": shuffled}
    rows: list[dict[str, Any]] = []
    for name, way in ways.items():
        ratios, seconds = [], []
        for seed, (lengths, forecast) in enumerate(zip(actual, expected, strict=True)):
            began = time.perf_counter()
            chosen = way(forecast, replicas, random.Random(seed))
            seconds.append(time.perf_counter() - began)
            assert sorted(i for members in chosen for i in members) == list(range(len(lengths)))
            makespan = max(sum(lengths[i] for i in members) for members in chosen)
            ratios.append(makespan / max(sum(lengths) / replicas, max(lengths)))
        rows.append({"case": case, "implementation": name, "ratios": {"to_bound": statistics.fmean(ratios)},
                     "worst": max(ratios), "seconds": statistics.median(seconds)})
        print(f"{case if name == 'srpo' else '':28} {name:12} {rows[-1]['ratios']['to_bound']:.4f} of the bound "
              f"(worst {max(ratios):.4f}), {rows[-1]['seconds'] * 1e3:.1f} ms", flush=True)
    return rows


def round_robin(lengths: Sequence[float], bins: int, _: random.Random) -> Assignment:
    return [list(range(b, len(lengths), bins)) for b in range(bins)]


def shuffled(lengths: Sequence[float], bins: int, rng: random.Random) -> Assignment:
    """As many for each, drawn at random."""
    order = rng.sample(range(len(lengths)), len(lengths))
    return [order[b::bins] for b in range(bins)]


def micro_batches(steps: list[list[float]], ranks: int) -> dict[str, Any]:
    ratios, seconds = [], []
    for step in steps:
        sizes = [min(BUDGET, 100 + int(MEDIAN * length)) for length in step]
        began = time.perf_counter()
        chosen = assign_within(sizes, [float(s) for s in sizes], ranks, BUDGET)
        seconds.append(time.perf_counter() - began)
        ratios.append(len(chosen[0]) / -(-sum(sizes) // (ranks * BUDGET)))
    return {"case": f"micro-batches on {ranks}", "implementation": "srpo",
            "ratios": {"to_fewest": statistics.fmean(ratios)}, "worst": max(ratios),
            "seconds": statistics.median(seconds)}


if __name__ == "__main__":
    main()
