"""The launch scripts against stand-ins of what they start: torchrun, and Slurm's commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

TORCHRUN = f"""#!{sys.executable}
import signal, subprocess, sys, time
from pathlib import Path
rank = '''
import os, signal, sys, time
def stop(*_):
    with open("told", "a") as file:
        file.write("x")
    if not os.path.exists("stubborn"):
        sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open("started", "w")
while True:
    time.sleep(0.1)
'''
signal.signal(signal.SIGINT, signal.default_int_handler)  # torchrun handles it, however it was started
ignored = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
Path("arguments").write_text(" ".join([str(ignored), *sys.argv[1:]]))
if Path("fails").exists():
    sys.exit(7)
child = subprocess.Popen([sys.executable, "-c", rank])
try:
    sys.exit(child.wait())
except KeyboardInterrupt:
    child.kill()
    sys.exit(1)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    file = tmp_path / "python"
    file.write_text(TORCHRUN)
    file.chmod(0o755)
    return file


def start(folder: Path, script: str, *arguments: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(["bash", str(LAUNCH / script), *arguments], cwd=folder, env=os.environ | env,
                            stderr=subprocess.PIPE, text=True)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def arguments(folder: Path) -> list[str]:
    return (folder / "arguments").read_text().split()


def test_arguments_of_torchrun(stand_in: Path, tmp_path: Path):
    (tmp_path / "fails").touch()
    process = start(tmp_path, "torchrun.sh", "c.yaml", "seed=2", PYTHON=str(stand_in), NPROC_PER_NODE="3", NNODES="2",
                    RDZV_ENDPOINT="10.0.0.1:500", LOCAL_ADDR="10.0.0.1")
    assert process.wait(60) == 7
    line = " ".join(arguments(tmp_path))
    assert line.startswith("True -m torch.distributed.run --nnodes 2 --nproc-per-node 3 --max-restarts 3 ")
    assert line.endswith("--local-addr 10.0.0.1 --rdzv-conf is_host=1 -m srpo train c.yaml seed=2")
    assert "--rdzv-endpoint 10.0.0.1:500" in line


def test_several_hosts_need_a_place_to_meet(stand_in: Path, tmp_path: Path):
    process = start(tmp_path, "torchrun.sh", "c.yaml", PYTHON=str(stand_in), NNODES="2")
    assert process.wait(60) != 0
    assert process.stderr and "RDZV_ENDPOINT: HOST:PORT where the hosts meet" in process.stderr.read()


def test_sigterm_reaches_the_ranks_and_torchrun_ends_with_their_code(stand_in: Path, tmp_path: Path):
    process = start(tmp_path, "torchrun.sh", "c.yaml", PYTHON=str(stand_in))
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert (tmp_path / "told").read_text() == "x"


def test_a_second_sigterm_ends_torchrun_too(stand_in: Path, tmp_path: Path):
    (tmp_path / "stubborn").touch()
    process = start(tmp_path, "torchrun.sh", "c.yaml", PYTHON=str(stand_in))
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGTERM)
    wait_for(tmp_path / "told")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1


SLURM = {
    "scontrol": 'if [ "$1" = show ]; then printf "node-7\\nnode-8\\n"; else echo "$@" >> requeued; fi',
    "srun": 'env > environment; echo "$@" > step; touch started; trap "exit 0" TERM; '
            'echo $$ > pid; while :; do sleep 0.1; [ ! -e over ] || exit "$(cat over)"; done',
    "scancel": 'echo "$@" > cancelled; kill -TERM "$(cat pid)"',
}


@pytest.fixture
def job(tmp_path: Path) -> subprocess.Popen:
    for name, body in SLURM.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(0o755)
    process = start(tmp_path, "slurm.sbatch", "c.yaml", "seed=2", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                    SLURM_JOB_ID="41", SLURM_NNODES="2", SLURM_GPUS_ON_NODE="4", SLURM_JOB_NODELIST="node-[7-8]")
    wait_for(tmp_path / "started")
    return process


def test_slurm_starts_one_torchrun_a_node(job: subprocess.Popen, tmp_path: Path):
    (tmp_path / "over").write_text("3")
    assert job.wait(60) == 3
    lines = (tmp_path / "environment").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    assert {k: environment[k] for k in ("NNODES", "RDZV_ENDPOINT", "RDZV_ID", "NPROC_PER_NODE")} == {
        "NNODES": "2", "RDZV_ENDPOINT": "node-7:20041", "RDZV_ID": "41.0", "NPROC_PER_NODE": "4"}
    assert (tmp_path / "step").read_text() == (
        "--kill-on-bad-exit=1 --cpu-bind=none bash launch/torchrun.sh c.yaml seed=2\n")
    assert not (tmp_path / "requeued").exists()


def test_slurm_that_asks_for_an_end_gets_the_job_back(job: subprocess.Popen, tmp_path: Path):
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 0
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 41.0\n"
    assert (tmp_path / "requeued").read_text() == "requeue 41\n"
