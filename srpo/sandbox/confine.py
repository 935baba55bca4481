"""Taking rights away from the calling process, with nothing but the standard library. Linux, x86_64 and aarch64.

The untrusted side loads this file too, so it imports nothing of the trusted side.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)

# System calls refused with EPERM: creating processes, executing files, leaving the session, signalling or inspecting
# others, opening sockets (io_uring could), new namespaces and mounts, shared memory, other processes' scheduling, what
# Landlock does not cover (modes, owners, times and attributes of files, watches on them), the kernel's log.
# Numbers on x86_64 and aarch64; None: does not exist there.
_DENIED: dict[str, tuple[int, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "setsid": (112, 157),
    "setpgid": (109, 154), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "kcmp": (312, 272), "process_madvise": (440, 440),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "socket": (41, 198), "bind": (49, 200),
    "io_uring_setup": (425, 425), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "mount_setattr": (442, 442), "bpf": (321, 280), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "perf_event_open": (298, 241), "syslog": (103, 116),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "msgget": (68, 186),
    "semctl": (66, 191), "semop": (65, 193), "semtimedop": (220, 192), "msgctl": (71, 187), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "mq_open": (240, 180), "mq_unlink": (241, 181), "sync": (162, 81), "syncfs": (306, 267),
    "statmount": (457, 457), "listmount": (458, 458), "open_tree_attr": (467, 467),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "fallocate": (285, 47),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "personality": (135, 92), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "getxattrat": (464, 464),
    "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr": (196, 13), "listxattrat": (465, 465),
    "file_getattr": (468, 468), "file_setattr": (469, 469),
    "mknod": (133, None), "mknodat": (259, 33), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
}
_NEWEST = 469
"""The last system call that the list above was written for: later ones do not exist for a program."""
_CLONE, _CLONE3, _PRLIMIT, _PRCTL, _SOCKETPAIR = (56, 220), 435, (302, 261), (157, 167), (53, 199)
_FCNTL, _IOCTL = (72, 25), (16, 29)
# Of fcntl: having signals sent to anyone (F_SETOWN, F_SETSIG, F_SETOWN_EX), leases on files, watches on folders.
_FCNTL_DENIED = (8, 10, 15, 1024, 1026)
# Of ioctl only: is it a terminal and how large, bytes waiting, blocking, closing on exec.
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _ABSENT = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def own_proc_files() -> None:
    """After a change of user, let this process open its own files in /proc again."""
    prctl(_PR_SET_DUMPABLE, 1)


def limit(*, cpu: int, memory: int, file_size: int, threads: int | None) -> None:
    """Hard resource limits: seconds, bytes of address space, bytes a file, threads of this user (None: as they are,
    where the user has others)."""
    values = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: file_size,
              resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0, resource.RLIMIT_MSGQUEUE: 0}
    if threads is not None:
        values[resource.RLIMIT_NPROC] = threads
    for what, value in values.items():
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def drop_rights(program: bytes) -> None:
    """Install a filter made by `seccomp_program` and give up every capability, for good."""
    no_new_privileges()
    if _libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    prctl(_PR_SET_SECCOMP, 2, fprog)


def no_new_privileges() -> None:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def seccomp_program() -> bytes:
    """A classic BPF program that refuses `_DENIED`; threads stay possible. Raises OSError on another architecture."""
    machine = platform.machine()
    if machine not in _AUDIT_ARCH or os.uname().sysname != "Linux":
        raise OSError(f"no system-call filter for {os.uname().sysname} on {machine}")
    column = list(_AUDIT_ARCH).index(machine)
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_ARCH[machine]), (_GIVE, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":                                   # the x32 numbers would bypass the list
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_GIVE, 0, 0, _KILL)]
    code += [(_AT_LEAST, 0, 1, _NEWEST + 1), (_GIVE, 0, 0, _ABSENT)]
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            code += [(_EQUAL, 0, 1, number), (_GIVE, 0, 0, _REFUSE)]
    # clone3 hides its flags from the filter: ENOSYS makes libc fall back to clone, allowed with CLONE_THREAD only.
    code += [(_EQUAL, 0, 1, _CLONE3), (_GIVE, 0, 0, _ABSENT)]
    code += _by_argument(_CLONE[column], 0, _ANY_BIT, [0x10000], _ALLOW, _REFUSE)
    # Its own limits (process 0) a program may read and lower, as libc does; nobody else's.
    code += _by_argument(_PRLIMIT[column], 0, _EQUAL, [0], _ALLOW, _REFUSE)
    # It must not outlive the zygote.
    code += _by_argument(_PRCTL[column], 0, _EQUAL, [_PR_SET_PDEATHSIG], _REFUSE, _ALLOW)
    # A pair of local stream sockets, as asyncio makes, reaches nobody; a datagram one could send to any path.
    code += [(_EQUAL, 0, 6, _SOCKETPAIR[column]), (_LOAD, 0, 0, 16), (_EQUAL, 0, 3, 1), (_LOAD, 0, 0, 24),
             (_ANY_BIT, 1, 0, 0xE), (_GIVE, 0, 0, _ALLOW), (_GIVE, 0, 0, _REFUSE)]
    code += _by_argument(_FCNTL[column], 1, _EQUAL, _FCNTL_DENIED, _REFUSE, _ALLOW)
    code += _by_argument(_IOCTL[column], 1, _EQUAL, _IOCTL_ALLOWED, _ALLOW, _REFUSE)
    code += [(_GIVE, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _by_argument(number: int, argument: int, test: int, values: Sequence[int], yes: int,
                 no: int) -> list[tuple[int, int, int, int]]:
    """`yes` for a system call whose argument (its low 32 bits) passes the test with one of the values, else `no`."""
    block = [(_LOAD, 0, 0, 16 + 8 * argument)]
    for value in values:
        block += [(test, 0, 1, value), (_GIVE, 0, 0, yes)]
    block += [(_GIVE, 0, 0, no)]
    return [(_EQUAL, 0, len(block), number), *block]


def prctl(option: int, first: int, second: bytes | None = None) -> None:
    zero = ctypes.c_ulong(0)                                  # the kernel checks that unused arguments are zero
    if _libc.prctl(option, ctypes.c_ulong(first), second, zero, zero):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def system_call(name: str, number: int, *arguments: int | bytes | None) -> int:
    """A system call that libc may not know. Raises OSError with its name."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result
