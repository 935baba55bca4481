"""The world of the end-to-end tests, made once, and the run that others are compared with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from world import CODE, MATHS, World

from srpo.data import toy


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Few sums and programs: a few seconds of warm start are enough to solve some of them sometimes."""
    folder = tmp_path_factory.mktemp("world")
    data = folder / "data"
    toy.write_model(data / "model", seed=1)
    rng = random.Random(1)
    train: list[dict[str, Any]] = []
    worked: list[dict[str, Any]] = []
    for domain, count, every, solve in (("math", MATHS, toy.all_sums(), toy.solve_sum),
                                        ("code", CODE, toy.all_functions(), toy.solve_function)):
        problems = [{"id": f"{domain}-{i}", "domain": domain, **p} for i, p in enumerate(rng.sample(every, count))]
        train += problems
        worked += [{"id": f"{p['id']}-{i}", "domain": domain, "prompt": p["prompt"], "response": solve(p, rng)}
                   for p in problems for i in range(40)]
    held_out = [{**problem, "id": f"held-{problem['id']}"} for problem in train[::3]]
    for name, rows in (("train", train), ("eval", held_out), ("worked", worked)):
        fields = [{k: v for k, v in row.items() if k not in ("terms", "steps")} for row in rows]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fields))
    return World(folder)


@pytest.fixture(scope="session")
def base(world: World) -> Path:
    """The folder of a run that nothing disturbed: two data-parallel ranks, warm start, two stages, four epochs."""
    output = world.train("base").succeed()
    (world.folder / "base.log").write_text(output)
    return world.folder / "base"
