"""How a launch of two ranks ends when one of them fails: non-zero, with the reason, once.

The ranks run the real command line with a stand-in for `srpo.train.train`, so that each case is exact and quick.
"""

import os
import re
import signal
import subprocess
import sys

import pytest
import yaml

RANK = """
import os, signal, sys, threading, time, types
from srpo import cli, errors
from srpo.errors import UserError
errors.GRACE = float(os.environ.get("TEST_GRACE", errors.GRACE))
rank = int(os.environ.get("RANK", "0"))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored

def wait_for_ever():
    time.sleep(3600)

def collective():
    import torch.distributed as dist
    dist.init_process_group("gloo")
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()

def train(config):
%s

sys.modules["srpo.train"] = types.ModuleType("srpo.train")
sys.modules["srpo.train"].train = train
cli.main(["train", sys.argv[1]])
"""


@pytest.fixture
def start(tmp_path):
    """Start the body of a train function on some ranks; returns the process."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 8, '
        '"hidden_size": 8, "vocab_size": 64}')
    data = tmp_path / "a.jsonl"
    data.touch()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({
        "run": str(tmp_path / "run"), "model": {"path": str(tmp_path)}, "data": {"train": [str(data)]},
        "stages": [{"name": "math", "domains": ["math"], "until": "steps", "steps": 1}]}))

    def start(body: str, ranks: int = 2, restarts: int = 0, **env: str) -> subprocess.Popen:
        script = tmp_path / "rank.py"
        script.write_text(RANK % "\n".join(f"    {line}" for line in body.strip().splitlines()))
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
                                          f"--max-restarts={restarts}"]
        return subprocess.Popen(
            [sys.executable, *launcher, str(script), str(tmp_path / "c.yaml")], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"} | env)

    return start


@pytest.mark.parametrize(("error", "tries"), [("UserError", 1), ("Fault", 3)])
def test_only_a_fault_is_tried_again(start, tmp_path, error, tries):
    """Bad input stays bad: ranks that torchrun starts again end at once, with the same line."""
    code, out = end(start(f"""
open("{tmp_path}/tries", "a").write("x") if rank == 0 else wait_for_ever()
raise errors.{error}("no such thing")
""", restarts=2))
    assert code != 0
    assert (tmp_path / "tries").read_text() == "x" * tries
    assert out.count("srpo: error: no such thing\n") >= 3


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and output, within the minute that a broken launch may take, and one to start on a busy machine."""
    try:
        out, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return process.returncode, out


def test_error_of_every_rank_is_printed_once(start):
    code, out = end(start("raise UserError('no such file')"))
    assert code != 0
    assert len(re.findall(r"^srpo: error.*no such file$", out, re.MULTILINE)) == 1
    assert re.search(r"Root Cause.*traceback : srpo: error: no such file", out, re.DOTALL)


def test_error_of_another_rank_is_printed_and_ends_the_waiting_one(start):
    code, out = end(start("raise UserError('disk full') if rank == 1 else wait_for_ever()", TEST_GRACE="0.2"))
    assert code != 0
    assert re.findall(r"^srpo: error.*$", out, re.MULTILINE) == ["srpo: error on rank 1: disk full"]


def test_killed_rank_ends_the_launch_and_only_the_cause_speaks(start):
    code, out = end(start("collective()"))
    assert code != 0
    assert "Signal 9 (SIGKILL)" in out and "srpo: rank 0 failed" not in out


def test_defect_ends_the_launch_although_threads_still_run(start):
    code, out = end(start("""
import torch
threading.Thread(target=wait_for_ever).start()
raise ZeroDivisionError("a defect") if rank == 1 else wait_for_ever()
"""))
    assert code != 0
    assert "srpo: rank 1 failed:" in out and "ZeroDivisionError: a defect" in out


def test_defect_that_is_no_exception_is_reported_too(start):
    code, out = end(start("""
from torch.distributed.checkpoint.api import CheckpointException
raise CheckpointException("torn", {})
""", ranks=1))
    assert code == 1
    assert "srpo: rank 0 failed:" in out and "CheckpointException" in out and "torn" in out


def test_interrupt_is_code_130(start):
    process = start("print('started', flush=True)\nwait_for_ever()", ranks=1)
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    code, out = end(process)
    assert (code, out) == (130, "srpo: interrupted\n")
