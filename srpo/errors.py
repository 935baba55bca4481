"""The one exception a user is meant to read, and how a launch of many ranks says it: once, whichever ranks have it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from srpo.printable import visible

GRACE = 5.0
"""Seconds that a rank other than 0 waits before it prints an error: if rank 0 has the same one, torchrun has ended
this rank by then, and the message appears once."""


class UserError(Exception):
    """Bad input or an impossible request: one line that names what is wrong, where, and what to do. The command line
    prints it without a traceback and exits 2."""


class Fault(UserError):
    """A machine's failure that another try may not meet: a rank or host that is gone, storage that failed for a moment.
    torchrun's restarts are for these; after any other UserError they would repeat it, see `met_before`."""


def rank() -> int:
    """This process's rank, as torchrun says it."""
    return int(os.environ.get("RANK", "0"))


def report(line: str, lasting: bool = False) -> None:
    """Print an error of one line once a launch. `lasting`: another try would only meet it again."""
    line = visible(line)
    tell_torchrun(line, lasting)
    if rank() > 0:
        first_of_machine = os.environ.get("LOCAL_RANK") == "0"
        time.sleep(GRACE if first_of_machine else 2 * GRACE)
        line = line.replace("error:", f"error on rank {rank()}:", 1)
    print(line, file=sys.stderr, flush=True)


def tell_torchrun(reason: str, lasting: bool = False) -> None:
    """Leave the reason for torchrun's summary, in the format of torch.distributed.elastic's `record`. That decorator
    would do it too early for a defect: the first reason on file is taken for the cause of all."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": reason, "timestamp": str(int(time.time())), "lasting": lasting}
        new = Path(f"{file}.new")  # torchrun itself fails on a file that is half written when this rank is ended
        new.write_text(json.dumps({"message": {"message": reason, "extraInfo": details}}))
        new.replace(file)


def met_before() -> str | None:
    """The lasting error of a rank of this host that this launch had before torchrun started its ranks again.

    The files are torchrun's own, of this launch alone: RUN-ID_RANDOM/attempt_N/LOCAL-RANK/error.json. Ranks of other
    hosts, which do not see it, wait for those that do, and end with them.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    for earlier in sorted(Path(file).parents[2].glob("attempt_*/*/error.json")):
        told = json.loads(earlier.read_text())["message"]
        if isinstance(told, dict) and told["extraInfo"].get("lasting"):
            return told["message"].removeprefix("srpo: error: ")
    return None
