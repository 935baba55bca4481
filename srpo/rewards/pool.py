"""Worker processes that can be killed: each request has a deadline, and one that is missed costs that request alone.

The workers are clean interpreters rather than forks of the trainer, which holds threads, vLLM and perhaps CUDA. A
worker has one request at a time, so that whoever hangs or dies is known; answers come back in the requests' order.
Nothing runs in the background here: work moves on in `submit`, which never waits, and in `collect`, which does.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from srpo.errors import UserError
from srpo.rewards.wire import Store

START_SECONDS = 120.0
"""A worker that takes longer to start is broken."""


@dataclass(frozen=True)
class Lost:
    """A request whose worker hung or died; `at` is the last thing that the worker said to be doing."""

    at: str
    why: str


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    channel: Connection
    deadline: float
    task: int | None = None
    ready: bool = False
    at: str = ""


class Pool:
    """`workers` processes of `python -m module CHANNEL STORE SETTINGS`, which answer requests; see srpo/rewards/wire.py
    for how they get them, srpo/rewards/worker.py for such a module.

    Raises UserError with the worker's own message when it refuses its settings. Create it in a thread that lives as
    long as the pool: the kernel ends the workers with it.
    """

    def __init__(self, module: str, settings: dict[str, Any], workers: int, timeout: float):
        self._module, self._settings, self._timeout = module, json.dumps(settings), timeout
        self._store = Store()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._answers: list[dict[str, Any] | Lost | None] = []
        self._workers = [self._start() for _ in range(workers)]
        try:
            while not all(w.ready for w in self._workers):
                self._turn()
        except BaseException:
            self.close()
            raise

    def submit(self, requests: Sequence[dict[str, Any]]) -> None:
        """Take up requests, perhaps none, and whatever the workers have answered; hand out work. Waits for nothing.

        A request is a dictionary of JSON values. One that several requests have, the same object, is written once; it
        must not change until `collect`.
        """
        for request in requests:
            places = {name: self._store.put(value) for name, value in request.items()}
            self._waiting.append((len(self._answers), json.dumps(places).encode()))
            self._answers.append(None)
        self._turn(patience=0)
        self._hand_out()

    def collect(self) -> list[dict[str, Any] | Lost]:
        """The answer to each request submitted since the last call, or how it was lost."""
        self._hand_out()
        while self._waiting or any(w.task is not None for w in self._workers):
            self._turn()
            self._hand_out()
        answers, self._answers = self._answers, []
        self._store.clear()
        return answers  # type: ignore[return-value]

    def map(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any] | Lost]:
        """`submit` and `collect`."""
        self.submit(requests)
        return self.collect()

    def close(self) -> None:
        for worker in self._workers:
            worker.channel.close()                            # its end
        for worker in self._workers:
            try:
                worker.process.wait(2)
            except subprocess.TimeoutExpired:
                self._kill(worker)
        self._workers.clear()
        self._store.close()

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join(p for p in sys.path if p)  # modules found here must be found there
            inherited = theirs.fileno(), self._store.fileno()
            environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, *map(str, inherited), self._settings], pass_fds=inherited,
                env=environment, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)
        return _Worker(process, Connection(ours.detach()), time.monotonic() + START_SECONDS)

    def _hand_out(self) -> None:
        for i, worker in enumerate(self._workers):
            if not self._waiting or not worker.ready or worker.task is not None:
                continue
            if worker.channel.poll():                         # its end: it died while idle, through no request's fault
                self._kill(worker)
                self._workers[i] = self._start()
            else:
                worker.task, request = self._waiting.popleft()
                worker.at, worker.deadline = "", time.monotonic() + self._timeout
                with suppress(OSError):                       # it died this moment: reading finds out
                    worker.channel.send_bytes(request)

    def _turn(self, patience: float = math.inf) -> None:
        """Wait for something to happen to a worker, for `patience` seconds at most, and deal with it."""
        busy = [w for w in self._workers if w.task is not None or not w.ready]
        if not busy:
            return
        left = min(w.deadline for w in busy) - time.monotonic()
        readable = set(wait([w.channel for w in busy], max(min(left, patience), 0)))
        for i, worker in enumerate(self._workers):
            if worker not in busy:
                continue
            if worker.channel in readable:
                why = self._read(worker)
            else:
                why = f"no answer within {self._timeout:g} s" if time.monotonic() >= worker.deadline else ""
            if why:
                self._kill(worker)
                if not worker.ready:
                    raise RuntimeError(f"a grader process did not start: {why}; its error is above")
                assert worker.task is not None
                self._answers[worker.task] = Lost(worker.at, why)
                self._workers[i] = self._start()

    def _read(self, worker: _Worker) -> str:
        """Take its messages; returns why the worker is lost, if it is."""
        while worker.channel.poll():
            try:
                message = json.loads(worker.channel.recv_bytes())
            except (EOFError, ConnectionResetError):
                return "its process died"
            if "error" in message:
                raise UserError(message["error"])
            if "ready" in message:
                worker.ready = True
            elif "at" in message:
                worker.at = message["at"]
            else:
                assert worker.task is not None
                self._answers[worker.task] = message
                worker.task = None
                break                                         # that it died afterwards concerns no request
        return ""

    @staticmethod
    def _kill(worker: _Worker) -> None:
        if worker.process.returncode is None:                 # not reaped: the number is still its own
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)  # with whatever a user's function started
        worker.process.wait()
        worker.channel.close()
