"""The untrusted side. Run as a script: a clean, warm interpreter that forks one process a program.

argv: the descriptor of a SOCK_SEQPACKET control socket. The trusted side sends b"run" with two descriptors (the
program's message socket, its standard output), later b"end", answered by b"ended" once nothing of the program is
left. Messages to and from a program are JSON lines; the first is its job.
"""

from __future__ import annotations

import builtins
import gc
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import types
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import confine  # type: ignore[import-not-found]  # noqa: E402
import wire  # type: ignore[import-not-found]  # noqa: E402

del sys.path[0], sys.modules["confine"], sys.modules["wire"]

WARM = ("array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions",
        "functools", "hashlib", "heapq", "itertools", "math", "operator", "queue", "random", "re", "statistics",
        "string", "textwrap", "time", "typing")
MESSAGES = 3
"""Descriptor of a program's message socket."""


def main() -> None:
    inherited = int(sys.argv[1])
    control = socket.socket(fileno=os.dup(inherited))
    os.close(inherited)                                       # so that every descriptor here is a low one
    try:
        seccomp = confine.seccomp_program()
        scratch = tempfile.mkdtemp(prefix="srpo-sandbox-")
    except OSError as e:
        control.send(str(e).encode())
        return
    for name in WARM:
        __import__(name)
    gc.freeze()
    try:
        control.send(b"up " + scratch.encode())
        serve(control, scratch, seccomp)
    except OSError:
        pass                                                  # the trusted side is gone, as at the end of `serve`
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def serve(control: socket.socket, scratch: str, seccomp: bytes) -> None:
    """One program after the other, until the trusted side closes the control socket."""
    while True:
        request, fds, _, _ = socket.recv_fds(control, 16, 2)
        if not request:
            return
        here = tempfile.mkdtemp(dir=scratch)
        pid = os.fork()
        if pid == 0:
            try:
                run(fds[0], fds[1], here, seccomp)
            finally:
                os._exit(1)
        for fd in fds:
            os.close(fd)
        control.recv(16)
        kill(pid)
        shutil.rmtree(here, ignore_errors=True)
        control.send(b"ended")


def kill(pid: int) -> None:
    """End a program. Its session holds whatever it could have started; the filter leaves it nothing to start."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)                          # not yet past setsid, or a zombie
    os.waitpid(pid, 0)


def run(messages: int, output: int, here: str, seccomp: bytes) -> None:
    """The forked process: confine itself, then run the program. Never returns."""
    confine.die_with_parent()
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (output, 1), (null, 2), (messages, MESSAGES)):
        os.dup2(source, target, inheritable=False)
    os.closerange(MESSAGES + 1, 256)
    os.environ.clear()
    os.chdir(here)
    tempfile.tempdir = here
    lines = open(MESSAGES, "rb", closefd=False)  # noqa: SIM115
    job = json.loads(lines.readline())
    if job["input"] is not None:
        with open("input", "w+", encoding="utf-8", errors="surrogatepass") as file:
            file.write(job["input"])
            file.flush()
            os.dup2(os.open("input", os.O_RDONLY), 0)
        os.remove("input")

    def send(message: dict[str, Any]) -> None:
        data = memoryview((json.dumps(message) + "\n").encode())
        while data:
            data = data[os.write(MESSAGES, data):]

    try:
        confine.limit(**job["limits"])
        confine.drop_rights(seccomp)
    except OSError as e:
        send({"raised": ["Unconfined", str(e)]})
        os._exit(1)
    # As a whole program the code is __main__; as a library it is not, so that its own demonstration does not run.
    module = types.ModuleType("solution" if job["input"] is None else "__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules[module.__name__] = module
    sys.argv = ["solution.py"]
    try:
        exec(compile(job["code"], "solution.py", "exec"), module.__dict__)
        sys.stdout.flush()
    except SystemExit as e:
        if job["input"] is None or e.code not in (None, 0):
            send({"raised": describe(e)})
            os._exit(0)
        sys.stdout.flush()
    except BaseException as e:
        send({"raised": describe(e)})
        os._exit(0)
    send({"value": None})
    while line := lines.readline():
        send(call(module, json.loads(line)))
    os._exit(0)


def call(module: types.ModuleType, request: dict[str, Any]) -> dict[str, Any]:
    """One call of a function of the program; its value or what it raised."""
    try:
        value = module.__dict__[request["name"]](*wire.decode(request["args"]), **wire.decode(request["kwargs"]))
        return {"value": wire.encode(value)}
    except BaseException as e:
        return {"raised": describe(e)}


def describe(e: BaseException) -> list[str]:
    try:
        return [type(e).__name__[:60], str(e)[:200]]
    except BaseException:
        return [type(e).__name__[:60], ""]


if __name__ == "__main__":
    main()
