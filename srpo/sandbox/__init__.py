"""Runs untrusted Python programs and judges them, with the verdict formed outside the untrusted process.

A program runs in a process of its own, forked from a clean interpreter that holds none of the trainer's memory. Into
it go the program and the arguments of one call at a time; out of it come values of exact built-in types as bounded
JSON. Expected values and test code stay here, so that patched builtins, objects equal to everything, early exits and
forged replies buy a program nothing: a reply is only ever a value, compared by us.

In every isolation: no right to create processes, to execute files, to signal or inspect others, to open sockets, to
make shared memory, and no system call newer than Linux 6.17 (seccomp); no capabilities; limits on processor time, wall
time, memory, threads, files, output; an environment of our own, read-only input, a scratch folder that goes with the
program. On top, the strongest of these that works here, as root or as an ordinary user (`srpo doctor` says which, and
why not a stronger one):

- namespaces: a root file system that holds Python and its libraries alone, read-only, and the scratch folder, which is
  in memory; no /proc; no process, user, network or shared memory but the program's own. Plus Landlock.
- landlock: reading Python and its libraries, writing the scratch folder, nothing else. A program still learns which
  paths and processes exist. Threads and the total of the files are looked at twenty times a second, so that a program
  may exceed these two for that long.
- unsafe: neither. A program may read and write whatever the account that runs the training may. Refused unless
  `allow_unsafe` (reward.allow_unsafe_sandbox) says otherwise.

What no isolation here holds against: errors in the kernel itself, and what two programs on one processor can measure of
each other.

Needs Linux on x86_64 or aarch64; namespaces 5.12, landlock alone 6.2. Elsewhere judging raises Refused.
"""

from srpo.sandbox.isolation import ISOLATIONS, Refused, allow_unsafe, probe
from srpo.sandbox.process import Limits
from srpo.sandbox.verdict import Verdict, check, judge, judge_many

__all__ = ["ISOLATIONS", "Limits", "Refused", "Verdict", "allow_unsafe", "check", "judge", "judge_many", "probe"]
