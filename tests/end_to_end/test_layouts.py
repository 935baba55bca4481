"""Layouts of the ranks other than plain data parallelism, and whose memory vLLM's weights are in each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launches import HERE, Launch, ended_with_the_answer, metrics, moved, weights
from world import World

from srpo import samples
from srpo.rollout.reshard import Plan

SHARED_MEMORY = Path("/dev/shm")
TWO_STEPS = [{"name": "both", "domains": ["math", "code"], "until": "steps", "steps": 2}]


def probe(world: World, run: str, env: dict[str, str], **sections: Any) -> Launch:
    return Launch(HERE / "probe.py", "train", world.config(run, **sections), ranks=2, folder=world.folder,
                  PROBE_OUT=str(world.folder / run), **env)


def seen(world: World, run: str) -> list[list[dict[str, Any]]]:
    return [json.loads((world.folder / f"{run}-{rank}.json").read_text()) for rank in range(2)]


def test_the_canary_stops_a_run_on_foreign_weights(base: Path, world: World) -> None:
    """Data-parallel, TP=1: all memory is shared, until after step 2 one matrix of the last replica no more is."""
    message = probe(world, "corrupted", {"PROBE_CORRUPT": "2"}, **world.warm()).fail(code=1)
    ranks = seen(world, "corrupted")
    for rank, steps in enumerate(ranks):
        assert [s["step"] for s in steps] == [1, 2, 3]
        assert all(s["parameters"] == 30 and s["stayed"] for s in steps)
        assert [s["aliased"] for s in steps] == [True, True, rank == 0]
        assert [s["updated"] for s in steps] == [True, True, False]
    assert message.startswith("step 3: prompt ")
    assert "vLLM does not run the trainer's weights; nothing was updated" in message
    assert message.split("'")[1] in ranks[1][2]["prompts"]  # one of those whose answers the wrong weights gave
    assert [m["step"] for m in metrics(world.folder / "corrupted")] == [0, 1, 2]


@pytest.fixture
def of_killed_launches() -> Iterator[None]:
    """Shared memory as tensor-parallel ranks would leave it under vLLM's own names; no other may be left."""
    files = [SHARED_MEMORY / f"-tp:0-[0-1]-cpushm_{rank}" for rank in range(2)]
    for file in files:
        file.touch()
    before = set(SHARED_MEMORY.glob("*-tp:*"))
    yield
    left = set(SHARED_MEMORY.glob("*-tp:*")) - before
    for file in files:
        file.unlink()
    assert not left


def test_another_layout_takes_up_a_checkpoint(base: Path, world: World, of_killed_launches: None) -> None:
    """Saved by two data-parallel ranks, resumed by two tensor- and sequence-parallel ones, whose responses now end with
    a stop string: TP=2 on shared memory as well."""
    run = world.copy("tensor", step=4)
    saved = world.folder / "saved-at-4"
    Launch("-m", "srpo", "export", run, saved, ranks=1, folder=world.folder).succeed()
    output = probe(world, "tensor", {}, parallel={"tensor": 2, "sequence": True},
                   rollout={"stop": ["</answer>"]}).succeed()
    assert "after step 4" in output and "parallel" not in output.split("changed since")[0]
    loaded = world.folder / "loaded"
    loaded.mkdir()
    (world.folder / "tensor.safetensors").rename(loaded / "model.safetensors")
    assert weights(loaded) == weights(saved)
    for steps in seen(world, "tensor"):
        assert all(s["parameters"] == 30 and s["aliased"] and s["stayed"] and s["updated"] for s in steps)
    assert metrics(run)[:5] == metrics(base)[:5] and metrics(run)[-1]["stage"] == "programs"
    trained_well(metrics(run)[5:], world.plan((2, 1), (2, 1)))  # the first four are of the other layout
    ended_with_the_answer(row for batch in samples.read_all(run) for row in batch.to_pylist() if row["step"] > 4)
    assert weights(run / "hf").keys() == weights(saved).keys() and weights(run / "hf") != weights(saved)


@pytest.mark.slow  # the first two in whole runs: above, and test_options.py
@pytest.mark.parametrize("name, parallel, rollout, train, to", [
    ("sequence", {"tensor": 2, "sequence": True}, {}, (2, 1), (2, 1)),
    ("pipeline", {"pipeline": 2}, {}, (1, 2), (2, 1)),
    ("narrow", {"tensor": 2}, {"tensor": 1}, (2, 1), (1, 1)),
    ("wide", {}, {"tensor": 2}, (1, 1), (2, 1)),
], ids=["sequence", "pipeline", "narrow", "wide"])  # fmt: skip
def test_training(name: str, parallel: dict[str, Any], rollout: dict[str, Any], train: tuple[int, int],
                  to: tuple[int, int], base: Path, world: World) -> None:
    """`to`: what vLLM runs at."""
    run, plan = world.folder / name, world.plan(train, to)
    output = world.train(name, parallel=parallel, rollout=rollout, stages=TWO_STEPS, **world.warm()).succeed()
    assert plan.summary(0) in output
    _, *steps = metrics(run)
    assert len(steps) == 2
    trained_well(steps, plan)
    assert weights(run / "hf") != weights(base / "warm")


def trained_well(steps: list[dict[str, Any]], plan: Plan) -> None:
    """The canary was quiet, also after weights had changed, and no more moved than the plan says."""
    for m in steps:
        assert m["rollout/logprob_diff_max"] < 1e-4
        assert (m["grad/norm"] == 0) == (m["groups/zero_advantage"] == 1)  # a tiny policy may have learnt everything
        assert moved(m) == (plan.aliased[0], plan.received[0])
