"""The trusted side's handle on untrusted programs: starts them, talks to them, and ends them in time."""

from __future__ import annotations

import json
import math
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo.errors import UserError
from srpo.sandbox import wire
from srpo.sandbox.scratch import remove_tree


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use, all its calls together."""

    wall: float = 5.0
    """Seconds, over all cases also where each is a run."""
    cpu: int = 6
    """Seconds of processor time; above `wall`, lest it be chance which of them ends an endless loop."""
    memory: int = 1 << 30
    """Bytes of address space."""
    file_size: int = 16 << 20
    """Bytes a file."""
    scratch: int = 64 << 20
    """Bytes of all its files together, each taking up a page at least."""
    output: int = 1 << 20
    """Bytes of standard output, and of any one returned value."""


class Stopped(Exception):
    """The program cannot answer any more; the message says why."""


class Raised(Exception):
    """The program raised: args are the exception's type name and its text, both the program's own words."""


_PATIENCE = 30
"""Seconds that the zygote has to start, and to end a program."""


class Sandbox:
    """A warm interpreter that runs one program at a time. `isolation` is one of srpo.sandbox.isolation.ISOLATIONS;
    raises UserError where the host does not allow it."""

    def __init__(self, isolation: str) -> None:
        self._isolation = isolation
        self.turn = threading.Lock()
        """To be held by whoever runs programs, where several threads do."""
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._scratch = ""
        zygote = Path(__file__).with_name("zygote.py")
        # The hash seed is fixed so that a program's verdict does not depend on the order of a set of strings.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-X", "utf8", str(zygote), str(theirs.fileno()), self._isolation],
            pass_fds=[theirs.fileno()], env={"PYTHONHASHSEED": "0", "TMPDIR": tempfile.gettempdir()}, cwd="/",
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        theirs.close()
        self._control.settimeout(_PATIENCE)
        try:
            answer = self._control.recv(4096).decode() or "the sandbox's process died at start"
        except OSError as e:
            answer = f"the sandbox's process does not start: {e}"
        if not answer.startswith("up "):
            self.close()
            raise UserError(answer)
        self._scratch = answer.removeprefix("up ")
        try:
            with Program(self, "import colorsys", Limits()) as program:  # a file of Python's that is not loaded yet
                program.load()
        except (Raised, Stopped, OSError) as e:
            self.close()
            raise UserError(": ".join(map(str, e.args))) from None

    def close(self) -> None:
        self._control.close()                                 # its end: it removes its scratch folder and leaves
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if os.path.isdir(self._scratch):                      # it was killed
            remove_tree(self._scratch)

    def launch(self, messages: socket.socket, output: int, scratch: int) -> None:
        """Start a program, which may write `scratch` bytes; `end` must follow."""
        request, fds = b"run %d" % scratch, [messages.fileno(), output]
        try:
            socket.send_fds(self._control, [request], fds)
        except OSError:                                       # it died since the last program
            self._replace()
            socket.send_fds(self._control, [request], fds)

    def end(self) -> None:
        """Kill the program; return when it is gone. Raises OSError when the zygote failed: what became of the program
        is then no fault of its own."""
        fault = "interrupted"
        try:
            self._control.send(b"end")
            answer = self._control.recv(4096).decode() or "died"
            fault = "" if answer == "ended" else answer
        except OSError as e:
            fault = "gives no answer" if isinstance(e, TimeoutError) else "died"
        finally:
            if fault:
                self._replace()
        if fault:
            raise OSError(f"the sandbox's process {fault}")

    def _replace(self) -> None:
        """A new zygote for one that died or does not answer."""
        self._process.kill()
        self.close()
        self._start()


class Program:
    """One untrusted program in a sandbox, as a context manager. With `input` it is a whole program whose standard
    output is kept; without, a library whose functions can be called."""

    def __init__(self, sandbox: Sandbox, code: str, limits: Limits, input: str | None = None):
        self._sandbox, self._limits = sandbox, limits
        self._received, self._output = bytearray(), bytearray()
        self.stopped = ""
        """Why the program ended before its time; empty while it is well."""
        self._socket, theirs = socket.socketpair()
        self._pipe, write = (-1, os.open(os.devnull, os.O_WRONLY)) if input is None else os.pipe()
        try:
            sandbox.launch(theirs, write, limits.scratch)
        finally:
            theirs.close()
            os.close(write)
        self._deadline = time.monotonic() + limits.wall
        self._socket.setblocking(False)
        self._job = {"code": code, "input": input, "limits": {
            "cpu": limits.cpu, "memory": limits.memory, "file_size": limits.file_size}}

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._sandbox.end()
        self._socket.close()
        if self._pipe >= 0:
            os.close(self._pipe)

    def load(self) -> None:
        """Run the code. Raises Raised or Stopped."""
        self._exchange(self._job)

    def call(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function's value for these arguments. Raises Raised, Stopped, or wire.Unsupported for the arguments."""
        return self._exchange({"name": name, "args": wire.encode(args, math.inf),
                               "kwargs": wire.encode(kwargs, math.inf)})

    def output(self) -> str:
        """All of a loaded program's standard output. Raises Stopped."""
        self._socket.shutdown(socket.SHUT_WR)                 # no calls will come: the program leaves
        while self._pipe >= 0:
            self._wait()
        return self._output.decode(errors="replace")

    def _exchange(self, message: dict[str, Any]) -> Any:
        if self.stopped:
            raise Stopped(self.stopped)
        self._send((json.dumps(message) + "\n").encode())
        try:
            reply = wire.loads(self._line())
            if type(reply) is not dict or len(reply) != 1:
                raise wire.Unsupported("malformed reply")
            if "value" in reply:
                return wire.decode(reply["value"])
            raised = reply.get("raised")
            if type(raised) is not list or len(raised) != 2 or any(type(r) is not str for r in raised):
                raise wire.Unsupported("malformed reply")
        except wire.Unsupported as e:
            raise self._stop(str(e)) from None
        raise Raised(*raised)

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view):]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError:
                raise self._stop(_EARLY) from None

    def _line(self) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > self._limits.output:
                raise self._stop("returned value too large")
            self._wait(select.POLLIN)
        line = bytes(self._received[:end])
        del self._received[:end + 1]
        return line

    def _wait(self, socket_event: int = 0) -> None:
        """Until that event on the socket, or a part of the output: left unread, it would block the program."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._stop("time limit")
        poll = select.poll()
        if socket_event:
            poll.register(self._socket, socket_event)
        if self._pipe >= 0:
            poll.register(self._pipe, select.POLLIN)
        ready = dict(poll.poll(left * 1000))
        if self._pipe in ready:
            self._read_output()
        if socket_event == select.POLLIN and self._socket.fileno() in ready:
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._stop(_EARLY)
            self._received += data

    def _read_output(self) -> None:
        data = os.read(self._pipe, 1 << 16)
        if not data:
            os.close(self._pipe)
            self._pipe = -1
        self._output += data
        if len(self._output) > self._limits.output:
            raise self._stop("too much output")

    def _stop(self, why: str) -> Stopped:
        self.stopped = why
        return Stopped(why)


_EARLY = "the program ended early"
