"""Judges programs as another account would: `python judge.py ISOLATION [root|nobody]`, a JSON line a program.

The first line out says why the sandbox refuses, if it does. Everything that programs start and leave behind
becomes a child of this process, where the tests look for it.
"""

import json
import os
import sys
from pathlib import Path

from srpo.errors import UserError
from srpo.sandbox import Limits, confine, namespaces
from srpo.sandbox.process import Sandbox
from srpo.sandbox.verdict import _judge

PR_SET_CHILD_SUBREAPER = 36


def become_nobody() -> None:
    """Give up root, with Python and this repository where an ordinary user could have them."""
    namespaces._unshare(namespaces._NEWNS)
    namespaces._mount(None, "/", None, namespaces._RECURSIVE | namespaces._PRIVATE)
    needed = [sys.base_prefix, sys.prefix, str(Path(__file__).parents[2])]
    trees = {path: namespaces._clone(path) for path in needed}
    for path, tree in trees.items():
        closed = [folder for folder in reversed(Path(path).parents) if not os.stat(folder).st_mode & 0o001]
        if closed:
            namespaces._mount("tmpfs", str(closed[0]), "tmpfs", 0, "size=1m,mode=755")
            os.makedirs(path)
        namespaces._attach(tree, path)
    os.setgroups([])
    os.setresgid(*[namespaces.NOBODY] * 3)
    os.setresuid(*[namespaces.NOBODY] * 3)
    confine.own_proc_files()


def main() -> None:
    if sys.argv[2] == "nobody" and os.getuid() == 0:
        become_nobody()
    confine.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        sandbox = Sandbox(sys.argv[1])
    except UserError as e:
        print(json.dumps({"refused": str(e)}), flush=True)
        return
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        verdict = _judge(sandbox, request["program"], request["tests"], Limits(**request["limits"]))
        print(json.dumps(vars(verdict)), flush=True)
    sandbox.close()


if __name__ == "__main__":
    main()
