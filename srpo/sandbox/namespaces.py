"""A machine of its own for untrusted programs: namespaces, and a root that holds a few folders, read-only.

`enter` moves the zygote there once; each program then gets process and mount namespaces of its own, so that its
scratch folder vanishes and everything that it started dies with it. Needs Linux 5.12, and either root or the right of
an ordinary user to create user namespaces.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable

from srpo.sandbox.confine import own_proc_files, system_call

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_READ_ONLY, _NOSUID, _NODEV, _NOEXEC, _RECURSIVE, _PRIVATE, _DETACH = 1, 2, 4, 8, 1 << 14, 1 << 18, 2
_EMPTY_PATH, _AT_RECURSIVE, _OPEN_TREE_CLONE = 0x1000, 0x8000, 1
_AT_FDCWD = -100
NOBODY = 65534
"""Whom root becomes: an account that owns nothing."""
SCRATCH = "/scratch"

_libc = ctypes.CDLL(None, use_errno=True)


def enter(visible: Iterable[str]) -> int:
    """Move to new namespaces whose root holds these folders only. Forks: returns in the first process of the new
    process namespace, while the caller waits for it and ends with it. Returns a descriptor for `next_program`.

    Raises OSError naming the step that the host refuses.
    """
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    everything = _NEWUSER | _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    if os.geteuid() == 0 and _is_mapped(NOBODY):              # root builds while it may read every folder, then goes
        _unshare(_NEWNS)
        _pivot(visible)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        own_proc_files()
        _unshare_user(everything, proc)
    else:
        _unshare_user(everything, proc)
        _pivot(visible)
    socket.sethostname("sandbox")
    pid = os.fork()
    if pid:
        os.closerange(3, 256)                                 # above all the control socket: its end must be seen
        os.waitpid(pid, 0)
        os._exit(0)
    namespace = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
    os.close(proc)
    return namespace


def next_program(namespace: int) -> None:
    """Have the next fork start a process namespace: its first process takes all others along when it dies."""
    _check(_libc.setns(namespace, _NEWPID), "setns")          # a second unshare is refused from anywhere else
    _unshare(_NEWPID)


def private_scratch(size: int) -> None:
    """An empty SCRATCH of `size` bytes in memory, which the calling process alone sees. Raises OSError."""
    _unshare(_NEWNS)
    # A file or folder counts a page at least, of its own inode.
    _mount("tmpfs", SCRATCH, "tmpfs", _NOSUID | _NODEV | _NOEXEC, f"size={size},nr_inodes={size // 4096},mode=700")


def _is_mapped(uid: int) -> bool:
    """Whether this account exists here: a container may have no other than its root, an ordinary user outside."""
    with open("/proc/self/uid_map") as file:
        return any(int(first) <= uid < int(first) + int(number) for first, _, number in map(str.split, file))


def _unshare_user(flags: int, proc: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _unshare(flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(fd, text.encode())
        os.close(fd)


def _pivot(visible: Iterable[str]) -> None:
    """Make / a read-only tmpfs that holds copies of the visible mounts under their own names."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    trees = {path: _clone(path) for path in visible}
    null = system_call("open_tree", _OPEN_TREE, _AT_FDCWD, b"/dev/null", _OPEN_TREE_CLONE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")  # any folder would do
    os.chdir("/tmp")
    for path, tree in trees.items():
        os.makedirs("." + path, exist_ok=True)
        _attach(tree, "." + path)
    os.makedirs("dev")
    os.close(os.open("dev/null", os.O_CREAT | os.O_WRONLY))
    _attach(null, "dev/null")
    os.makedirs("." + SCRATCH, exist_ok=True)
    system_call("pivot_root", _PIVOT_ROOT[os.uname().machine], b".", b".")
    _check(_libc.umount2(b".", _DETACH), "umount2")           # the old root, which now lies over the new one
    os.chdir("/")
    _set_attributes(_AT_FDCWD, b"/", 0, _READ_ONLY | _NOSUID)


def _clone(path: str) -> int:
    """A detached copy of a folder and the mounts below it, for reading only."""
    tree = system_call("open_tree", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | _AT_RECURSIVE)
    _set_attributes(tree, b"", _EMPTY_PATH | _AT_RECURSIVE, _READ_ONLY | _NOSUID | _NODEV)
    return tree


def _attach(tree: int, path: str) -> None:
    system_call("move_mount", _MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(path), 4)  # MOVE_MOUNT_F_EMPTY_PATH
    os.close(tree)


def _set_attributes(fd: int, path: bytes, flags: int, attributes: int) -> None:
    system_call("mount_setattr", _MOUNT_SETATTR, fd, path, flags, struct.pack("QQQQ", attributes, 0, 0, 0), 32)


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [word and word.encode() for word in (source, target, kind, data)]
    _check(_libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def _check(result: int, name: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
