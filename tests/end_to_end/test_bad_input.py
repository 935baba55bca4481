"""What a user reads when something is wrong with what a run was given: one line, and exit code 2."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from launches import Launch, metrics, query
from world import World

FILE = 2 << 20  # bytes, where a checkpoint takes 10 million


@pytest.fixture(scope="session")
def launched(base: Path, world: World) -> Iterator[dict[str, Future[Launch]]]:
    """Every run of this file by name: of one rank, and two at a time."""

    def malformed() -> Launch:
        lines = (world.folder / "data" / "train.jsonl").read_text().splitlines()
        lines[2] = lines[2][:-1]
        (world.folder / "malformed.jsonl").write_text("\n".join(lines))
        return run("malformed", data={"train": [str(world.folder / "malformed.jsonl")]})

    def no_weights() -> Launch:
        shutil.copytree(base / "warm", world.folder / "no-weights")
        (world.folder / "no-weights" / "model.safetensors").unlink()
        return run("missing", model={"path": str(world.folder / "no-weights")})

    def truncated() -> Launch:
        folder = world.copy("truncated", step=6)
        for older in (folder / "checkpoints").glob("step-*[!6]"):
            shutil.rmtree(older)
        shards = (folder / "checkpoints" / "step-00000006").glob("*.distcp")
        file = max(shards, key=lambda f: f.stat().st_size)
        with file.open("rb+") as f:
            f.truncate(file.stat().st_size // 2)
        return world.train("truncated", ranks=1)

    def run(name: str, before: tuple[str, ...] = (), **sections: object) -> Launch:
        return world.train(name, ranks=1, before=before, **{**world.warm(), **sections})

    starts: dict[str, Callable[[], Launch]] = {
        "malformed": malformed,
        "no weights": no_weights,
        "truncated": truncated,
        "large file": lambda: run("large-file", before=("prlimit", f"--fsize={FILE}")),
        "raises": lambda: run("raises", reward={"custom": [{"function": "bad_rewards:raises"}]}),
        "emptied": lambda: run(
            "emptied", reward={"custom": [{"function": "bad_rewards:sometimes_nan"}]}, resample={"drop_at": 0.01},
            batch={"prompts": 4, "samples": 8},
            stages=[{"name": "sums", "domains": ["math"], "until": "steps", "steps": 1},
                    {"name": "programs", "domains": ["code"], "until": "epochs", "epochs": 40}]),
    }

    def ended(start: Callable[[], Launch]) -> Launch:
        launch = start()
        launch.end()
        return launch

    with ThreadPoolExecutor(2) as two:
        yield {name: two.submit(ended, start) for name, start in starts.items()}


def test_unknown_key(world):
    message = world.train("unknown", ranks=1, optimizer={"learning_rate": 1e-4}).fail()
    assert message == f"{world.folder}/unknown.yaml: optimizer.learning_rate: unknown key; valid keys: lr, warmup, " \
                      "beta1, beta2, eps, weight_decay, clip_grad"
    assert not (world.folder / "unknown").exists()


def test_malformed_data_line(launched, world):
    assert re.fullmatch(re.escape(f"{world.folder}/malformed.jsonl:3: not valid JSON: ") + r".* at column \d+",
                        launched["malformed"].result().fail())


def test_missing_model_file(launched, world):
    assert launched["no weights"].result().fail() == (
        f"{world.folder}/no-weights: has neither model.safetensors nor model.safetensors.index.json")


def test_unreadable_checkpoint(launched, world):
    assert launched["truncated"].result().fail().startswith(
        f"{world.folder}/truncated/checkpoints/step-00000006: damaged: ")


def test_disk_that_fails_in_the_middle_of_a_checkpoint(launched, world):
    assert launched["large file"].result().fail().startswith(
        f"{world.folder}/large-file/checkpoints: writing the checkpoint failed: ")
    assert not (world.folder / "large-file" / "checkpoints" / "latest").exists()


def test_reward_function_that_always_raises(launched):
    assert re.fullmatch(r"reward.custom: 'bad_rewards:raises' failed on all of the last \d+ responses: "
                        "KeyError: 'no such field'", launched["raises"].result().fail())


def test_reward_that_is_nan(launched, world):
    """It costs its responses a zero; the step, and the run, go on."""
    output = launched["emptied"].result().succeed()
    assert "reward function bad_rewards:sometimes_nan failed on problem math-0: ValueError: returned nan; it scores " \
           "zero" in output
    run = world.folder / "emptied"
    _, first, *_ = metrics(run)
    rows = query(run, "SELECT prompt_id, reward, correct FROM rollouts WHERE step = 1")
    assert {(r, c) for prompt, r, c in rows if prompt == "math-0"} == {(0.0, 0.0)}
    assert first["reward/failed"] == 8 and any(reward > 0 for _, reward, _ in rows)


def test_data_emptied_by_resampling(launched, world):
    """The run ends as usual, and says why so soon."""
    output = launched["emptied"].result().succeed()
    run = world.folder / "emptied"
    *_, (emptied, detail), (stage, end) = query(run, "SELECT kind, detail FROM events")
    assert (emptied, detail) == ("emptied", "stage programs: no code prompt is left after resampling")
    assert (stage, end) == ("stage", "programs -> end of the run: no code prompt is left after resampling")
    assert detail in output
    assert metrics(run)[-1].keys() >= {"eval/math", "eval/code"} and (run / "hf" / "config.json").exists()
