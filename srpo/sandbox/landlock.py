"""The file system as Landlock lets a process see it: a few folders to read, one to write, nothing to execute.

Landlock (Linux 5.13) needs no right and no namespace. It covers opening, creating, removing and renaming files; modes,
owners, times and attributes, which it does not cover, are refused by the system-call filter of confine.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from srpo.sandbox.confine import no_new_privileges, system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
# Execute, and make character devices, sockets, named pipes and block devices; commands to devices.
_NEVER = 1 << 0 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 15
ALONE = 3
"""The version that suffices without namespaces: earlier ones let a program truncate what it may read."""


def version() -> int:
    """Of the kernel's Landlock; 0 without."""
    try:
        return system_call("landlock_create_ruleset", _CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: str) -> None:
    """Leave the calling process these folders and /dev/null, no TCP, no signals and abstract sockets to others."""
    abi = version()
    every_right = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    attributes = struct.pack("QQQ", every_right, 3, 3)[:8 if abi < 4 else 16 if abi < 6 else 24]
    no_new_privileges()
    ruleset = system_call("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
    rules = {path: _READ_FILE | _READ_DIR for path in readable}
    rules |= {"/dev/null": _READ_FILE | _WRITE_FILE, writable: every_right & ~_NEVER}
    for path, rights in rules.items():
        fd = os.open(path, os.O_PATH)
        if not os.path.isdir(path):
            rights &= _READ_FILE | _WRITE_FILE
        system_call("landlock_add_rule", _ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
        os.close(fd)
    system_call("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
