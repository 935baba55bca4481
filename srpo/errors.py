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


def rank() -> int:
    """This process's rank, as torchrun says it."""
    return int(os.environ.get("RANK", "0"))


def report(line: str) -> None:
    """Print an error of one line once a launch."""
    line = visible(line)
    tell_torchrun(line)
    if rank() > 0:
        first_of_machine = os.environ.get("LOCAL_RANK") == "0"
        time.sleep(GRACE if first_of_machine else 2 * GRACE)
        line = line.replace("error:", f"error on rank {rank()}:", 1)
    print(line, file=sys.stderr, flush=True)


def tell_torchrun(reason: str) -> None:
    """Leave the reason for torchrun's summary, in the format of torch.distributed.elastic's `record`. That decorator
    would do it too early for a defect: the first reason on file is taken for the cause of all."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": reason, "timestamp": str(int(time.time()))}
        new = Path(f"{file}.new")  # torchrun itself fails on a file that is half written when this rank is ended
        new.write_text(json.dumps({"message": {"message": reason, "extraInfo": details}}))
        new.replace(file)
