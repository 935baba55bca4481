"""Faults, really caused, of a launch whose ranks do nothing but exchange numbers: a dead rank, a hung one, SIGTERM, and
ranks that are not the same program on the same input. Whole runs under the same faults: tests/end_to_end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from harness import ROOT

RANK = """
import ctypes, os, signal, sys, time, types
from pathlib import Path
rank, again = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT") == "1"

def disagree():
%s

disagree()
from srpo import cli

def stuck_with_the_interpreter():
    mutex, c = ctypes.create_string_buffer(64), ctypes.PyDLL(None)  # which keeps the interpreter's lock
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)

def train(config):
    import torch.distributed as dist
    from srpo import preflight
    from srpo.comm import all_gather, join
    from srpo.watchdog import Watchdog
    watchdog = Watchdog(Path(config.run) / "stacks")
    Path(f"joining-{rank}").write_text("")
    with watchdog.guard():
        watchdog.begin(*join())
        preflight.check(config)
        watchdog.arm(config.parallel.timeout)
        for step in range(int(os.environ.get("STEPS", "5"))):
            all_gather(step)
            if rank == 0:
                Path("step").write_text(str(step))
            fault(step)
            if watchdog.stop_requested():
                print(f"rank {rank} stopped", flush=True)
                break
            time.sleep(float(os.environ.get("PAUSE", "0")))
        watchdog.close()
        dist.barrier()
        dist.destroy_process_group()

def fault(step):
%s

sys.modules["srpo.train"] = types.ModuleType("srpo.train")
sys.modules["srpo.train"].train = train
cli.main(["train", sys.argv[1]])
"""
LIMIT = 150  # seconds a launch on busy cores


def lines(body: str) -> str:
    return "\n".join(f"    {line}" for line in body.strip().splitlines())


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., psutil.Popen]:
    """Start ranks with a fault in the loop, or a disagreement before anything of srpo is imported; `timeout` is in
    minutes, short where a rank hangs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        '{"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 8, '
        '"hidden_size": 8, "vocab_size": 64}')
    (tmp_path / "a.jsonl").write_text("a problem")

    def start(fault: str = "pass", disagree: str = "pass", ranks: int = 2, restarts: int = 0, timeout: float = 10.0,
              **env: str) -> psutil.Popen:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({
            "run": str(tmp_path / "run"), "model": {"path": str(tmp_path / "model")}, "data": {"train": ["a.jsonl"]},
            "batch": {"prompts": 6}, "parallel": {"timeout": timeout},
            "stages": [{"name": "math", "domains": ["math"], "until": "steps", "steps": 1}]}))
        (tmp_path / "rank.py").write_text(RANK % (lines(disagree), lines(fault)))
        with (tmp_path / "log").open("w") as log:
            return psutil.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
                 "--max-restarts", str(restarts), str(tmp_path / "rank.py"), str(tmp_path / "c.yaml")],
                cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"} | env)

    return start


@pytest.fixture
def end(tmp_path: Path) -> Callable[[psutil.Popen], tuple[int, str]]:
    """Exit code and output."""

    def end(process: psutil.Popen) -> tuple[int, str]:
        try:
            code = process.wait(LIMIT)
        except psutil.TimeoutExpired:
            process.terminate()
            raise AssertionError((tmp_path / "log").read_text()) from None
        return code, (tmp_path / "log").read_text()

    return end


def errors(output: str) -> list[str]:
    return re.findall(r"^srpo: error.*", output, re.MULTILINE)


def stacks(folder: Path) -> dict[str, str]:
    return {f.name: f.read_text() for f in folder.glob("run/stacks/*/*")}


def test_a_stopped_rank_is_named_and_shown_and_the_launch_starts_again(start, end, tmp_path):
    fault = "rank == 1 and step == 3 and not again and os.kill(os.getpid(), signal.SIGSTOP)"
    code, out = end(start(fault, ranks=3, restarts=1, timeout=0.1))
    assert code == 0, out
    (error,) = errors(out)
    assert re.search(r"rank 1 \(\S+\) did not come to a collective that took more than 0.1 minutes "
                     rf"\(parallel.timeout\); stacks of all ranks: {tmp_path}/run/stacks/\w+$", error)
    found = stacks(tmp_path)
    assert found.keys() == {"rank-00000.txt", "rank-00001.txt", "rank-00002.txt"}
    assert "state T" in found["rank-00001.txt"] and "state T" not in found["rank-00000.txt"]
    assert re.search(r'File ".*rank.py", line \d+ in fault', found["rank-00001.txt"])
    assert all("in train" in text and "in _heed_signals" in text for text in found.values())
    assert (tmp_path / "step").read_text() == "4"


@pytest.mark.slow  # torchrun waits half a minute for such a rank to end
def test_a_rank_that_keeps_the_interpreter_is_shown_too(start, end, tmp_path):
    code, out = end(start("rank == 0 and step == 3 and stuck_with_the_interpreter()", timeout=0.1))
    assert code != 0
    (error,) = errors(out)
    assert re.search(r"rank 0 \(\S+\) did not come to a collective", error)
    assert "in stuck_with_the_interpreter" in stacks(tmp_path)["rank-00000.txt"]


def test_a_killed_rank_ends_the_others_and_the_launch_starts_again(start, end, tmp_path):
    fault = "rank == 1 and step == 3 and not again and os.kill(os.getpid(), signal.SIGKILL)"
    process = start(fault, ranks=3, restarts=1)
    code, out = end(process)
    assert code == 0, out
    assert errors(out) == []  # torchrun says it: the others have nothing to add
    assert re.search(r"exitcode: -9.*local_rank: 1", out)
    assert (tmp_path / "step").read_text() == "4"


def test_a_rank_that_waits_is_told_by_torchrun_that_another_is_gone(start, end, tmp_path):
    """The collective itself would learn nothing: rank 0 is not in one. Its stack shows what it did."""
    code, out = end(start("if step == 3: time.sleep(600) if rank == 0 else os._exit(3)"))
    assert code != 0 and errors(out) == []
    assert "in fault" in stacks(tmp_path)["rank-00000.txt"]


def ranks_of(process: psutil.Popen) -> list[psutil.Process]:
    return [child for child in process.children() if "RANK" in child.environ()]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_to_one_rank_stops_all_after_the_same_step(start, end, tmp_path):
    process = start(STEPS="100000", PAUSE="0.01")
    wait_for((tmp_path / "step").exists)
    ranks_of(process)[1].send_signal(signal.SIGTERM)
    code, out = end(process)
    assert code == 0 and errors(out) == [], out
    assert sorted(re.findall(r"rank (\d) stopped", out)) == ["0", "1"]


def test_sigterm_while_the_run_starts_ends_it_at_once(start, end, tmp_path):
    """The ranks wait in C++ for a third one that never comes: a handler of Python's own would not run."""
    process = start(disagree="os.environ['WORLD_SIZE'] = '3'")
    wait_for(lambda: all((tmp_path / f"joining-{rank}").exists() for rank in range(2)))
    for rank in ranks_of(process):
        rank.send_signal(signal.SIGTERM)
    code, out = end(process)
    assert code == 0 and errors(out) == [], out


@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_when_only_one_rank_has_begun(start, end, tmp_path, asked):
    """Rank 1 waits for rank 0 in its first step. It is asked: both stop after that step. Rank 0 is: both end now."""
    process = start(disagree=f"""
from srpo.watchdog import Watchdog
arm = Watchdog.arm
def late(*arguments):
    time.sleep({3 if asked else 60} if rank == 0 else 0)
    arm(*arguments)
    Path("begun").write_text("")
Watchdog.arm = late""", STEPS="100000", PAUSE="0.01")
    wait_for((tmp_path / "begun").exists)
    ranks_of(process)[asked].send_signal(signal.SIGTERM)
    code, out = end(process)
    assert code == 0 and errors(out) == [], out
    assert sorted(re.findall(r"rank (\d) stopped", out)) == (["0", "1"] if asked else [])


def test_a_second_sigterm_ends_a_rank_at_once(start, end, tmp_path):
    """Twice at one moment is once: the scheduler's and torchrun's."""
    process = start("step == 3 and time.sleep(600)")
    wait_for(lambda: (tmp_path / "step").exists() and (tmp_path / "step").read_text() == "3")
    for _ in range(2):
        for rank in ranks_of(process):
            rank.send_signal(signal.SIGTERM)
    time.sleep(5)
    assert process.poll() is None and len(ranks_of(process)) == 2
    ranks_of(process)[0].send_signal(signal.SIGTERM)
    code, out = end(process)
    assert code != 0 and re.search(r"exitcode\s*: 143", out)


DISAGREE = f"""
if rank == 1:
    import shutil
    shutil.copytree("{ROOT}/srpo", "other/srpo")
    with open("other/srpo/batch.py", "a") as file:
        file.write("# edited in place")
    os.mkdir("other/numpy-0.1.dist-info")
    Path("other/numpy-0.1.dist-info/METADATA").write_text("Name: numpy")
    Path("other/numpy-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\\nName: numpy\\nVersion: 0.1")
    Path("other/a.jsonl").write_text("another problem")
    Path("other/c.yaml").write_text(Path("c.yaml").read_text() + "seed: 7")
    os.chdir("other")
    sys.path.insert(0, os.getcwd())
    sys.argv[1] = "c.yaml"
"""


def test_ranks_that_are_not_the_same_program_on_the_same_input_do_not_begin(start, end, tmp_path):
    code, out = end(start(disagree=DISAGREE, ranks=3))
    assert code != 0
    (error,) = errors(out)
    host = r"\([\w.-]+\)"
    assert re.fullmatch(r"srpo: error: the ranks of this launch are not the same; against rank 0 "
                        rf"{host}, rank 1 {host}: "
                        r"data file a.jsonl = \w{16} instead of \w{16}, package numpy = 0.1 instead of [\d.]+, "
                        r"seed = 7 instead of 1, sources of srpo = \w{16} instead of \w{16}", error)
    assert not (tmp_path / "step").exists()
