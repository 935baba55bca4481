"""Runs untrusted Python programs and judges them, with the verdict formed outside the untrusted process.

A program runs in a process of its own, forked from a clean interpreter that holds none of the trainer's memory. Into
it go the program and the arguments of one call at a time; out of it come values of exact built-in types as bounded
JSON. Expected values and test code stay here, so that patched builtins, objects equal to everything, early exits and
forged replies buy a program nothing: a reply is only ever a value, compared by us.

What holds today: own process and session without the right to create processes, to execute files, to signal others
or to open sockets (seccomp), no capabilities, limits on CPU time, wall time, memory, file size and output, cleared
environment, empty standard input, a scratch folder removed afterwards.

What does NOT hold yet: the file system is not hidden. A program may read, and write, whatever the account that runs
the training may (as root: root's own files), and sees the process list in /proc. The total of what it writes to the
scratch folder is not limited, only each file. Shared memory that it creates outlives it. Do not run programs from
people you distrust before namespaces or Landlock close this.

Needs Linux on x86_64 or aarch64; elsewhere starting a sandbox raises UserError.
"""

from srpo.sandbox.process import Limits
from srpo.sandbox.verdict import Verdict, check, judge, judge_many

__all__ = ["Limits", "Verdict", "check", "judge", "judge_many"]
