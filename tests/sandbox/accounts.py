"""Sandboxes as the accounts and in the isolations that this host allows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ACCOUNTS = ("root", "nobody") if os.getuid() == 0 else ("user",)
AT_REST = {"namespaces": 2, "landlock": 1}
"""Processes of an idle sandbox: with namespaces one waits outside, one is the first inside."""
SECRET = "s3cret-of-the-trainer"


class Judge:
    """A process of an account that judges programs; see judge.py."""

    def __init__(self, account: str, isolation: str, ground: Ground | None = None) -> None:
        self.account, self.isolation, self.ground = account, isolation, ground
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "A_SECRET": SECRET}
        if ground:
            environment["TMPDIR"] = str(ground.scratch)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("judge.py")), isolation, account], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd="/")
        started = self._read()
        self.refused = started.get("refused", "")

    def __call__(self, program: str, tests: dict[str, Any], **limits: float) -> dict[str, Any]:
        print(json.dumps({"program": program, "tests": tests, "limits": limits}), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        assert line, "the judge died"
        return json.loads(line)

    def processes(self) -> set[int]:
        """The sandbox's own, and whatever programs left."""
        return descendants(self._process.pid) - {self._process.pid}

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def descendants(root: int) -> set[int]:
    """A living process and its descendants."""
    parents = living()
    found, new = set(), {root} & parents.keys()
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new}
    return found


def living() -> dict[int, int]:
    """Processes that are no zombies, and their parents."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    return parents


@cache
def allowed() -> list[tuple[str, str]]:
    """(account, isolation) pairs that work on this host."""
    found = []
    for account in ACCOUNTS:
        for isolation in ("namespaces", "landlock"):
            judge = Judge(account, isolation)
            judge.close()
            if not judge.refused:
                found.append((account, isolation))
    return found


class Ground:
    """What an attack could harm: a folder and a process of the account that runs it."""

    def __init__(self, account: str, folder: Path) -> None:
        uid = 65534 if account == "nobody" else os.getuid()
        self.home, self.scratch = folder / "home", folder / "tmp"
        self.home.mkdir()
        self.scratch.mkdir()
        (self.home / "secret").write_text(SECRET)
        for path in (self.home, self.scratch, self.home / "secret"):
            os.chown(path, uid, -1)
        os.chmod(self.home / "secret", 0o600)
        user = {"user": uid, "group": uid, "extra_groups": []} if account == "nobody" else {}
        self.victim = subprocess.Popen(["sleep", "1000"], cwd=self.home, env={"A_SECRET": SECRET}, **user)
        self._before = self._state()

    def _state(self) -> dict[str, Any]:
        status = os.stat(self.home / "secret")
        pid = self.victim.pid
        return {
            "files": sorted(os.listdir(self.home)), "text": (self.home / "secret").read_text(),
            "file": (status.st_mode, status.st_uid, status.st_mtime, status.st_nlink),
            "alive": self.victim.poll() is None, "cores": os.sched_getaffinity(pid),
            "priority": os.getpriority(os.PRIO_PROCESS, pid), "limits": Path(f"/proc/{pid}/limits").read_text(),
            "shared": [name for name in os.listdir("/dev/shm") if "srpo" in name],
            "system v": [line for kind in ("shm", "sem", "msg") for line in
                         Path(f"/proc/sysvipc/{kind}").read_text().splitlines() if str(0x5A5A) in line.split()[:1]],
        }

    def unharmed(self) -> None:
        assert self._state() == self._before

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        shutil.rmtree(self.home.parent)
