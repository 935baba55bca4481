"""The untrusted side. Run as a script: a clean, warm interpreter that forks one process a program.

argv: the descriptor of a SOCK_SEQPACKET control socket, and the isolation (srpo/sandbox/isolation.py says what each
name means). The trusted side sends b"run BYTES", how much a program may write in all, with two descriptors (its
message socket, its standard output); later b"end", answered by b"ended" once nothing of the program is left. Messages
to and from a program are JSON lines; the first is its job.
"""

from __future__ import annotations

import atexit
import builtins
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import tempfile
import threading
import types
from contextlib import suppress
from typing import Any

# Stands in for the packages, whose own code would load the trusted side.
for _name, _folder in (("srpo", ".."), ("srpo.sandbox", ".")):
    _package = types.ModuleType(_name)
    _package.__path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), _folder)]
    sys.modules[_name] = _package

from srpo.sandbox import confine, landlock, namespaces, scratch, wire  # noqa: E402

for _name in [name for name in sys.modules if name.startswith("srpo")]:
    del sys.modules[_name]

WARM = ("array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions",
        "functools", "hashlib", "heapq", "itertools", "math", "operator", "queue", "random", "re", "statistics",
        "string", "textwrap", "time", "typing")
MESSAGES = 3
"""Descriptor of a program's message socket."""
THREADS = 64
"""That a program may have."""
WATCH_SECONDS = 0.05
"""Between two looks at a program without namespaces, whose threads and total of files nothing else limits."""


def main() -> None:
    inherited = int(sys.argv[1])
    control = socket.socket(fileno=os.dup(inherited))
    os.close(inherited)                                       # so that every descriptor here is a low one
    for name in WARM:
        __import__(name)
    gc.freeze()
    try:
        zygote = Zygote(control, sys.argv[2])
    except OSError as e:
        control.send(str(e.strerror or e).encode())
        return
    try:
        control.send(b"up " + zygote.scratch.encode())
        zygote.serve()
    except OSError:
        pass                                                  # the trusted side is gone, as at the end of `serve`
    finally:
        zygote.close()


class Zygote:
    """Forks and ends programs. Raises OSError where the host lacks what the isolation needs."""

    def __init__(self, control: socket.socket, isolation: str) -> None:
        self._control = control
        self._isolation = isolation
        self._seccomp = confine.seccomp_program()
        self._readable = libraries()
        self._landlock = isolation != "unsafe" and landlock.version() > 0
        if isolation == "landlock" and landlock.version() < landlock.ALONE:
            raise OSError(f"Landlock version {landlock.version()}, needs {landlock.ALONE} (Linux 6.2)")
        self._namespace, self.scratch = -1, ""
        if isolation == "namespaces":
            self._namespace = namespaces.enter(self._readable)
            confine.die_with_parent()
        else:
            self.scratch = tempfile.mkdtemp(prefix="srpo-sandbox-")

    def close(self) -> None:
        if self.scratch:
            scratch.remove_tree(self.scratch)

    def serve(self) -> None:
        """One program after the other, until the trusted side closes the control socket, as it does when it dies."""
        while True:
            request, fds, _, _ = socket.recv_fds(self._control, 16, 2)
            if not request:
                return
            size = int(request.removeprefix(b"run "))
            try:
                pid, here = self._fork(fds, size)
            except OSError as e:                              # the host's fault, not the program's
                self._control.recv(16)
                self._control.send(f"could not start a program: {e}".encode())
                return
            finally:
                for fd in fds:
                    os.close(fd)
            if self.scratch:
                self._watch(pid, here, size)
            self._control.recv(16)
            kill(pid)
            if self.scratch:
                scratch.remove_tree(here)
            self._control.send(b"ended")

    def _fork(self, fds: list[int], size: int) -> tuple[int, str]:
        """A new program's process and its scratch folder."""
        here = namespaces.SCRATCH
        if self.scratch:
            here = tempfile.mkdtemp(dir=self.scratch)
        else:
            namespaces.next_program(self._namespace)
        zygote, pid = os.getpid(), os.fork()
        if pid == 0:
            try:
                self._run(zygote, fds[0], fds[1], here, size)
            finally:
                os._exit(1)
        return pid, here

    def _watch(self, pid: int, here: str, size: int) -> None:
        """Kill a program that has too many threads or files, until the trusted side has something to say."""
        while not select.select([self._control], [], [], WATCH_SECONDS)[0]:
            if threads(pid) > THREADS or scratch.used(here, size) > size:
                os.kill(pid, signal.SIGKILL)

    def _run(self, zygote: int, messages: int, output: int, here: str, size: int) -> None:
        """The forked process: confine itself, then run the program. Never returns."""
        confine.die_with_parent()
        if os.getppid() not in (zygote, 0):                   # dead before that; 0: outside the process namespace
            return
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for source, target in ((null, 0), (output, 1), (null, 2), (messages, MESSAGES)):
            os.dup2(source, target, inheritable=False)
        os.closerange(MESSAGES + 1, 256)
        os.environ.clear()
        os.environ["OMP_NUM_THREADS"] = "1"                   # else numpy starts one a core, beyond the limits on many
        lines = open(MESSAGES, "rb", closefd=False)  # noqa: SIM115
        job = json.loads(lines.readline())
        if job["input"] is not None:
            read_only_input(job["input"].encode(errors="surrogatepass"))
        try:
            if not self.scratch:
                namespaces.private_scratch(size)
            os.chdir(here)
            tempfile.tempdir = here
            confine.limit(**job["limits"], threads=None if self.scratch else THREADS)
            if self._landlock:
                landlock.restrict(self._readable, here)
            confine.drop_rights(self._seccomp)
        except OSError as e:
            send({"raised": ["Unconfined", str(e)]})
            os._exit(1)
        execute(job, lines)


def libraries() -> list[str]:
    """The folders that hold Python, its packages and the libraries that these load."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [os.path.join(prefix, lib) for prefix in (sys.base_prefix, sys.prefix, "/", "/usr", "/usr/local")
              for lib in ("lib", "lib64")]
    paths.append("/etc/alternatives")                         # through which some libraries are found
    paths = sorted({path for path in paths if os.path.isdir(path)})
    return [path for path in paths if not any(path.startswith(other + "/") for other in paths)]


def kill(pid: int) -> None:
    """End a program, and with it its process namespace, or its session: the filter leaves it nothing else."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)                          # not yet past setsid, or a zombie
    os.waitpid(pid, 0)


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def read_only_input(data: bytes) -> None:
    """Make this the standard input, in memory."""
    fd = os.memfd_create("input", os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    os.close(fd)


def send(message: dict[str, Any]) -> None:
    data = memoryview((json.dumps(message) + "\n").encode())
    while data:
        data = data[os.write(MESSAGES, data):]


def execute(job: dict[str, Any], lines: Any) -> None:
    """Run the program, then answer calls of its functions. Never returns."""
    # As a whole program the code is __main__; as a library it is not, so that its own demonstration does not run.
    module = types.ModuleType("solution" if job["input"] is None else "__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules[module.__name__] = module
    sys.argv = ["solution.py"]
    try:
        exec(compile(job["code"], "solution.py", "exec"), module.__dict__)
    except BaseException as e:
        if job["input"] is None or not isinstance(e, SystemExit) or e.code not in (None, 0):
            send({"raised": describe(e)})
            os._exit(0)
    if job["input"] is not None:
        finish()
    send({"value": None})
    while line := lines.readline():
        send(call(module, json.loads(line)))
    os._exit(0)


def finish() -> None:
    """What Python does when a script ends: programs write their output in threads, and at exit."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(Exception):                             # closed, or of the program's own making
            stream.flush()  # type: ignore[union-attr]


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
