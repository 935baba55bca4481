"""`kill -9` at moments that matter, then the same command again: the run must end as if nothing had happened."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from launches import RANK_DIES, Launch, metrics, query, same, survivors
from world import World

from srpo.control.ledger import Ledger, RolloutRow


def closed_epochs(run: Path) -> int:
    return len(query(run, "SELECT epoch FROM epochs"))


def stage_changes(run: Path) -> int:
    return len(query(run, "SELECT step FROM events WHERE kind = 'stage'"))


def being_saved(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*"))


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(base: Path, world: World) -> None:
    run = world.folder / "killed"

    def kill(moment: Callable[[Launch], object]) -> None:
        launch = world.train("killed")
        everyone = launch.when(lambda: moment(launch)).kill()
        assert len(everyone) >= 3 and survivors(everyone) == []

    kill(lambda launch: "warm start: step 50" in launch.output)
    assert not (run / "warm").exists() and metrics(run) == []
    kill(lambda _: closed_epochs(run) == 1)
    kill(lambda _: stage_changes(run) == 1)

    launch = world.train("killed")  # and once a single rank, while a checkpoint is written
    launch.when(lambda: len(metrics(run)) > 5 and being_saved(run))
    everyone, (_, victim) = launch.everyone(), launch.ranks()
    victim.kill()
    assert launch.end(RANK_DIES) != 0
    assert "Signal 9 (SIGKILL)" in launch.output and "rank      : 1" in launch.output
    assert survivors(everyone) == []

    output = world.train("killed").succeed()
    assert f"resuming {run} after step" in output
    same(run, base)
    assert not list((run / "checkpoints").glob(".*"))


def test_a_second_launch_of_a_running_run_is_refused(world: World) -> None:
    first = world.train("twice", ranks=1).when(lambda: (world.folder / "twice" / "ledger.sqlite").exists())
    first.process.suspend()
    second = world.train("twice", ranks=1)
    second.end()
    assert survivors(first.kill()) == []
    folder = world.folder / "twice"
    assert second.fail() == f"run = '{folder}': another launch is using it; wait for it, or choose another folder"


def test_a_run_whose_checkpoints_are_gone_is_left_alone(world: World) -> None:
    """The same command again would delete what it has: here the rows, which took the most time."""
    run = world.folder / "bare"
    run.mkdir()
    with closing(Ledger(run / "ledger.sqlite")) as ledger:
        ledger.append([RolloutRow(1, 1, "sums", "math-0", 0, "math", 0.0, 0.0, 7, False)])
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "holds 1 steps in its ledger, but no checkpoint to go on from" in world.train("bare", ranks=1).fail()
    assert query(run, "SELECT step FROM rollouts") == [(1,)] and metrics(run) == [{"step": 1}]
    assert not (run / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_random_kills(base: Path, world: World) -> None:
    """A random moment is a place in the run's progress and a little time after it."""
    run, rng = world.folder / "ten", random.Random(10)
    last = metrics(base)[-1]["step"]

    def saved() -> int:
        latest = run / "checkpoints" / "latest"
        return int(latest.read_text().removeprefix("step-")) if latest.exists() else -1

    def somewhere(until: int) -> Callable[[], object]:
        step = min(max(saved(), 0) + rng.randint(1, 2), until)
        return rng.choice([
            lambda: metrics(run)[-1]["step"] >= step,
            lambda: query(run, f"SELECT 1 FROM rollouts WHERE step >= {step} LIMIT 1"),  # not learnt from yet
            lambda: being_saved(run)])

    changed = next(m["step"] for m in metrics(base) if m.get("stage") == "programs") - 1
    for moment in ["start", "epoch", "early", "early", "stage", "late", "late", "late", "late", "end"]:
        launch = world.train("ten")
        if moment == "start":
            time.sleep(15 * rng.random())
        else:
            launch.when(lambda: "weights: aliased" in launch.output)  # noqa: B023 (old rows are rolled back by then)
            launch.when({
                "epoch": lambda: closed_epochs(run) == 1,
                "early": somewhere(until=changed - 1),
                "stage": lambda: stage_changes(run) == 1,
                "late": somewhere(until=last - 1),
                "end": lambda: metrics(run)[-1]["step"] == last}[moment])
            time.sleep(rng.random() / 10)
        assert survivors(launch.kill()) == []
    world.train("ten").succeed()
    same(run, base)
    world.train("ten").succeed()  # and a complete run stays as it is
    same(run, base)
