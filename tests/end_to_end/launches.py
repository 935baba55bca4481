"""Real launches of the command line, what they leave in a run folder, and killing them without mercy."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from srpo.control.ledger import Ledger

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 240  # seconds a launch
RANK_DIES = 60  # seconds that a launch may outlive one of its ranks


class Launch:
    """A Python command on one or more ranks, as a user starts it. `before`: what it is started through. `script`: by
    launch/torchrun.sh, which adds `-m srpo train` itself."""

    def __init__(self, *command: str | Path, ranks: int, folder: Path, before: tuple[str, ...] = (),
                 script: bool = False, **env: str):
        start = [sys.executable]
        if script:
            start = ["bash", str(ROOT / "launch" / "torchrun.sh")]
            env = {"NPROC_PER_NODE": str(ranks), "PYTHON": sys.executable} | env
        elif ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(HERE), os.environ.get("PYTHONPATH", "")])
        self._log = folder / f"{time.monotonic_ns()}.log"
        with self._log.open("w") as log:
            self.process = psutil.Popen(
                [*before, *start, *map(str, command)], cwd=folder, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | env)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def end(self, limit: float = LIMIT) -> int:
        """Wait for its exit code."""
        with self._or_nothing_stays():
            try:
                return self.process.wait(limit)
            except psutil.TimeoutExpired:
                raise AssertionError(f"still running after {limit} s:\n{self.output[-4000:]}") from None

    def succeed(self) -> str:
        code = self.end()
        assert code == 0, f"exit code {code}:\n{self.output[-6000:]}"
        return self.output

    def fail(self, code: int = 2) -> str:
        """The error that it ends with: printed once, on one line, without a traceback of its own."""
        found, output = self.end(), self.output
        assert found == code and "failed:\nTraceback" not in output, f"exit code {found}:\n{output[-6000:]}"
        (message,) = re.findall(r"^srpo: error(?: on rank \d+)?: (.*)", output, re.MULTILINE)
        return message

    def when(self, moment: Callable[[], object], limit: float = LIMIT) -> Launch:
        """Return at the moment, which must come before the launch ends."""
        deadline = time.monotonic() + limit
        with self._or_nothing_stays():
            while not moment():
                assert self.process.poll() is None, f"ended before the moment:\n{self.output[-6000:]}"
                assert time.monotonic() < deadline, f"the moment did not come:\n{self.output[-6000:]}"
                time.sleep(0.005)
        return self

    @contextmanager
    def _or_nothing_stays(self) -> Iterator[None]:
        """A test that fails or is interrupted leaves no run behind."""
        try:
            yield
        except BaseException:
            if self.process.poll() is None:
                self.kill()
            raise

    def ranks(self) -> list[psutil.Process]:
        """The processes that train, rank 0 first."""
        found = {}
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                rank = child.environ().get("RANK")
                if rank and "RANK" not in child.parent().environ():  # what a rank starts has it too
                    found[rank] = child
        return [found[r] for r in sorted(found)]

    def everyone(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def kill(self) -> list[psutil.Process]:
        """`kill -9` of the launcher and its ranks at one moment. What they started (graders, programs under test,
        checkpoint writers) is to end by itself. Returns all processes that there were."""
        launch = [self.process, *self.ranks()]
        for process in launch:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        everyone = self.everyone()
        for process in launch:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()
        return everyone


def survivors(processes: list[psutil.Process], patience: float = 15) -> list[psutil.Process]:
    """Which of the processes still run after some seconds. A zombie does not: in a container nobody may reap it."""
    deadline = time.monotonic() + patience
    while (alive := [p for p in processes if _runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- what a run folder holds -----------------------------------------------------------------------------------------


def metrics(run: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl: it may be read while it is written."""
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def moved(step: dict[str, Any]) -> tuple[int, int]:
    """Bytes of weights that rank 0 did not have to copy for vLLM in a step, and that it received."""
    return step["weights/aliased_bytes"], step["weights/moved_bytes"]


def query(run: Path, sql: str) -> list[tuple]:
    """Rows of the ledger of a run that may be going on; none while it has no ledger yet."""
    file = run / "ledger.sqlite"
    if not file.exists():
        return []
    with suppress(sqlite3.OperationalError):  # its tables are not there yet, or locked at this moment
        db = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()
    return []


def trace(run: Path) -> dict[str, Any]:
    """All that a run decided and computed, bit for bit: metrics without times, the ledger, the exported weights, the
    stored responses."""
    lines = [{k: v for k, v in m.items() if not k.startswith("time/") and not k.endswith("tokens_per_s")}
             for m in metrics(run)]
    ledger = Ledger(run / "ledger.sqlite")
    dump = list(ledger.dump())
    ledger.close()
    responses = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    return {"metrics": lines, "ledger": dump, "weights": weights(run / "hf"), "responses": responses}


def same(run: Path, undisturbed: Path, but: str = "") -> None:
    """All bits are those of the other run, but for ledger rows that contain `but`."""
    ours, theirs = trace(run), trace(undisturbed)
    if but:
        ours["ledger"] = [row for row in ours["ledger"] if but not in row]
    for part in theirs:
        assert ours[part] == theirs[part], part


def ended_with_the_answer(stored: Iterable[dict[str, Any]]) -> None:
    """Responses that rollout.stop = ["</answer>"] has ended."""
    ended = [row for row in stored if "</answer>" in row["response"]]
    assert all(row["response"].index("</answer>") + len("</answer>") == len(row["response"]) for row in ended)
    assert ended and not any(row["truncated"] for row in ended) and any(row["correct"] for row in ended)


def weights(directory: Path) -> dict[str, bytes]:
    """Type, shape and bits of every tensor of a Hugging Face directory."""
    tensors = {n: t for file in directory.glob("*.safetensors") for n, t in load_file(file).items()}
    assert tensors, f"{directory}: no weights"
    return {n: f"{t.dtype} {tuple(t.shape)} ".encode() + t.numpy().tobytes() for n, t in tensors.items()}
