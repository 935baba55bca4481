"""The run folder: one launch at a time, and the resolved configuration in it."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from srpo import yaml12
from srpo.config import Config, dump, flat
from srpo.errors import Fault, UserError
from srpo.files import write_text

log = logging.getLogger(__name__)


def claim(folder: Path) -> IO[str]:
    """Create the run folder and lock it for the life of this process: two launches would undo each other's rows."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as e:
        raise UserError(f"run = {str(folder)!r}: cannot be used as a run folder: {e.strerror}") from None
    # What a killed launch leaves (a checkpoint's writer) takes a moment to die; a network file system keeps the lock of
    # a host that is gone for longer, and torchrun starts the others again meanwhile.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    deadline = time.monotonic() + (120 if restarted else 10)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Fault(f"run = {str(folder)!r}: another launch is using it; wait for it, or choose another "
                            "folder") from None
            time.sleep(0.1)
        except OSError as e:
            raise _no_locks(folder, e) from None


def in_use(folder: Path) -> bool:
    """Whether a launch has the run folder now."""
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as e:
        raise _no_locks(folder, e) from None
    return False


def _no_locks(folder: Path, error: OSError) -> UserError:
    return UserError(f"run = {str(folder)!r}: its file system gives no lock, by which two launches are kept apart: "
                     f"{error.strerror}; mount it with locks (Lustre: -o flock, NFS: without nolock), or choose a "
                     "folder on another one")


def config_file(run: Path) -> Path:
    """The run's configuration. Raises UserError where there is none."""
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run}: not a run folder, there is no config.yaml in it")
    return file


def record(file: Path, config: Config) -> None:
    """Write the resolved configuration, saying what differs from the one there before."""
    if file.exists() and (changed := _changes(file, config)):
        log.warning("%s changed since the run began: %s", file, "; ".join(changed))
    write_text(file, dump(config))


def _changes(file: Path, config: Config) -> list[str]:
    old, new = flat(yaml12.parse(file.read_text())), flat(config.model_dump())
    return [f"{key} = {new.get(key, 'unset')} (was {old.get(key, 'unset')})"
            for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
