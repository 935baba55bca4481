"""Taking rights away from the calling process, with nothing but the standard library. Linux, x86_64 and aarch64.

The untrusted side loads this file too, so it imports nothing of srpo.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct

_libc = ctypes.CDLL(None, use_errno=True)

# System calls refused with EPERM: creating processes, executing files, leaving the session, signalling or inspecting
# others, opening sockets (io_uring could), new namespaces. Numbers on x86_64 and aarch64; None: does not exist there.
_DENIED: dict[str, tuple[int, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "setsid": (112, 157),
    "setpgid": (109, 154), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "socket": (41, 198), "io_uring_setup": (425, 425),
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "perf_event_open": (298, 241),
}
_CLONE, _CLONE3, _PRLIMIT = (56, 220), 435, (302, 261)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(*, cpu: int, memory: int, file_size: int) -> None:
    """Hard resource limits: seconds, bytes of address space, bytes a file."""
    for what, value in ((resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_size),
                        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def drop_rights(program: bytes) -> None:
    """Install a filter made by `seccomp_program` and give up every capability, for good."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    header, data = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if _libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    _prctl(_PR_SET_SECCOMP, 2, fprog)


def seccomp_program() -> bytes:
    """A classic BPF program that refuses `_DENIED`; threads stay possible. Raises OSError on another architecture."""
    machine = platform.machine()
    if machine not in _AUDIT_ARCH or os.uname().sysname != "Linux":
        raise OSError(f"no system-call filter for {os.uname().sysname} on {machine}")
    column = list(_AUDIT_ARCH).index(machine)
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    code = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    if machine == "x86_64":                                   # the x32 numbers would bypass the list
        code += [(at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            code += [(equal, 0, 1, number), (give, 0, 0, refuse | errno.EPERM)]
    # clone3 hides its flags from the filter: ENOSYS makes libc fall back to clone, allowed with CLONE_THREAD only.
    code += [(equal, 0, 1, _CLONE3), (give, 0, 0, refuse | errno.ENOSYS)]
    code += [(equal, 0, 4, _CLONE[column]), (load, 0, 0, 16), (any_bit, 1, 0, 0x10000),
             (give, 0, 0, refuse | errno.EPERM), (give, 0, 0, allow)]
    # Its own limits (process 0) a program may read and lower, as libc does; nobody else's.
    code += [(equal, 0, 3, _PRLIMIT[column]), (load, 0, 0, 16), (equal, 1, 0, 0), (give, 0, 0, refuse | errno.EPERM)]
    code += [(give, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _prctl(option: int, first: int, second: bytes | None = None) -> None:
    zero = ctypes.c_ulong(0)                                  # the kernel checks that unused arguments are zero
    if _libc.prctl(option, ctypes.c_ulong(first), second, zero, zero):
        raise OSError(ctypes.get_errno(), f"prctl {option}")
