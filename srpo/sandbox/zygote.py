"""The untrusted side. Run as a script: a clean, warm interpreter that forks one process a program.

argv: the descriptor of a SOCK_SEQPACKET control socket, and the isolation (srpo/sandbox/isolation.py says what each
name means). The trusted side sends b"run BYTES", how much a program may write in all, with two descriptors (its
message socket, its standard output); later b"end", answered by b"ended" once nothing of the program is left. Messages
to and from a program are JSON lines; the first is its job.
"""

from __future__ import annotations

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
import types
from itertools import count
from typing import Any

# Stands in for the packages, whose own code would load the trusted side.
for _name, _folder in (("srpo", ".."), ("srpo.sandbox", ".")):
    _package = types.ModuleType(_name)
    _package.__path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), _folder)]
    sys.modules[_name] = _package

from srpo.sandbox import confine, landlock, namespaces, wire  # noqa: E402

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
        self._namespace = namespaces.enter(self._readable) if isolation == "namespaces" else -1
        confine.die_with_parent()                             # again after each fork, and each change of user
        self.scratch = "" if self._namespace >= 0 else tempfile.mkdtemp(prefix="srpo-sandbox-")

    def close(self) -> None:
        if self.scratch:
            remove_tree(self.scratch)

    def serve(self) -> None:
        """One program after the other, until the trusted side closes the control socket."""
        while True:
            request, fds, _, _ = socket.recv_fds(self._control, 16, 2)
            if not request:
                return
            size = int(request.removeprefix(b"run "))
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
            for fd in fds:
                os.close(fd)
            if self.scratch:
                self._watch(pid, here, size)
            self._control.recv(16)
            kill(pid)
            if self.scratch:
                remove_tree(here)
            self._control.send(b"ended")

    def _watch(self, pid: int, here: str, size: int) -> None:
        """Kill a program that has too many threads or files, until the trusted side has something to say."""
        while not select.select([self._control], [], [], WATCH_SECONDS)[0]:
            if threads(pid) > THREADS or used(here, size) > size:
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


def used(folder: str, enough: int) -> int:
    """Bytes that the files below a folder take up on disk, a page at least for each; stops counting at `enough`."""
    total, folders = 0, [folder]
    while folders and total <= enough:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    total += max(entry.stat(follow_symlinks=False).st_blocks * 512, 4096)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:                             # the program is at work
            continue
        except OSError:                                       # paths too long, folders made unreadable: no honest use
            return enough + 1
    return total


def remove_tree(folder: str) -> None:
    """Remove a folder, however deep it is and whatever the modes in it. Folders in it are moved up to its parent."""
    parent, number = os.path.dirname(folder), count()
    folders = [folder]
    while folders:
        path = folders.pop()
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    folders.append(os.path.join(parent, f"{os.path.basename(folder)}-{next(number)}"))
                    os.rename(entry.path, folders[-1])
                else:
                    os.remove(entry.path)
        os.rmdir(path)


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
