"""Whole runs that faults happen to: nothing that was committed is lost, and the end is that of an undisturbed run."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from launches import Launch, metrics, query, same, survivors
from world import World

DAMAGED = "SELECT detail FROM events WHERE kind = 'damaged'"


def at_step(launch: Launch, run: Path, step: int) -> Launch:
    return launch.when(lambda: any(m["step"] >= step for m in metrics(run)))


def flip_a_bit(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))


def test_a_run_that_is_killed_stopped_and_damaged(base: Path, world: World) -> None:
    """A dead rank, which torchrun starts again; SIGTERM to everything that belongs to the launch, as Slurm sends it;
    and a flipped bit in what was saved then."""
    run = world.folder / "faults"
    launch = at_step(world.launch("faults"), run, 2)
    launch.ranks()[1].kill()
    launch.when(lambda: f"resuming {run} after step" in launch.output)
    launch.when(lambda: launch.output.count("weights: aliased") == 2)
    at_step(launch, run, 5)
    everyone = launch.everyone()
    for process in everyone:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    assert "exitcode: -9" in launch.succeed() and survivors(everyone) == []
    assert re.search(r"SIGTERM: saving and stopping after this step", launch.output)
    (stopped,) = re.findall(r"stopped after step (\d+); the same command resumes it", launch.output)
    assert int(stopped) < metrics(base)[-1]["step"]
    newest = run / "checkpoints" / f"step-{int(stopped):08d}"
    assert (run / "checkpoints" / "latest").read_text() == newest.name and not (run / "hf").exists()

    flip_a_bit(max(newest.glob("*.distcp")))
    output = world.train("faults").succeed()
    (damage,) = query(run, DAMAGED)[0]
    assert re.search(rf"{newest} is damaged: \S+ has another checksum than what was written; going back to step-\d+",
                     damage)
    assert damage in output
    assert (run / "checkpoints" / f"damaged-{newest.name}").is_dir()
    same(run, base, but="'damaged'")


@pytest.fixture
def small_disk(world: World) -> Iterator[Path]:
    """A file system of 40 MB: room for three checkpoints."""
    disk = world.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk(base: Path, world: World, small_disk: Path) -> None:
    """In the middle of a save, when somebody else takes the room; and seen beforehand. What was saved stays."""
    run = small_disk / "run"

    def train(**checkpoint: int) -> Launch:
        return world.train("disk/run", ranks=1, **world.warm(), checkpoint=checkpoint)

    def resize(size: int) -> bool:
        """Whether what is there fits."""
        command = ["mount", "-o", f"remount,size={size}", small_disk]
        return subprocess.run(command, capture_output=True).returncode == 0

    def no_room_for_a_save_that_has_begun() -> bool:
        with suppress(FileNotFoundError):
            (begun,) = (run / "checkpoints").glob(".step-????????.????????")
            before = sum(f.stat().st_size for f in small_disk.rglob("*") if f.is_file() and f.parent != begun)
            return len(metrics(run)) > 2 and resize(before + 4 * 2**20)  # of more than 12
        return False

    launch = train(every=1, keep=1)
    launch.when(lambda: any((run / "checkpoints").glob(".step-????????.????????"))
                and no_room_for_a_save_that_has_begun())
    saved = (run / "checkpoints" / "latest").read_text()
    message = launch.fail()
    assert re.search(r"No space left on device|disk (is )?full", message), message  # the ledger is on it too
    assert (run / "checkpoints" / "latest").read_text() == saved

    assert resize(40 * 2**20)
    launch = train(every=1, keep=9)
    message = launch.fail()
    assert re.fullmatch(rf"{run}/checkpoints: a checkpoint needs [\d.]+ GiB and [\d.]+ GiB are free; free some space, "
                        "or lower checkpoint.keep", message)
    assert f"resuming {run} after step {int(saved.removeprefix('step-'))}\n" in launch.output


@pytest.mark.slow  # how slow it seems depends on what else the machine does
def test_a_slow_rank_is_named(base: Path, world: World) -> None:
    """Rank 1 has the processor for a tenth of the time: less than a machine with several times as many processes as
    cores leaves to rank 0. A step may still go by between two halts, or find rank 0 off the processor; a check that
    knew nothing would name each rank in half of them."""
    run = world.folder / "slow"
    stage = {"name": "sums", "domains": ["math"], "until": "epochs", "epochs": 8}
    launch = world.train("slow", **world.warm(), stages=[stage], resample={"sampler": "plain", "drop_at": None},
                         batch={"prompts": 2})
    launch.when(lambda: "weights: aliased" in launch.output)
    victim = launch.ranks()[1]
    slow = threading.Event()

    def throttle() -> None:
        with suppress(psutil.NoSuchProcess):
            while not slow.is_set():
                victim.suspend()
                time.sleep(0.27)
                victim.resume()
                time.sleep(0.03)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        output = launch.succeed()
    finally:
        slow.set()
        thread.join()
    steps = metrics(run)[1:]
    named = [m["time/slowest_rank"] for m in steps]
    assert named.count(1) > 0.65 * len(named)
    assert re.search(r"rank 1 \(\S+\) has been the slowest for 5 steps: \w+ took it [\d.]+ s, the others [\d.]+ s",
                     output)
