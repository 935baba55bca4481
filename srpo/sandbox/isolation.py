"""How well the host lets programs be isolated: tried, not guessed, and never weaker than the user agreed to."""

from __future__ import annotations

import logging
from functools import cache

from srpo.errors import UserError
from srpo.sandbox.process import Sandbox

log = logging.getLogger(__name__)

ISOLATIONS = {
    "namespaces": "own user, process, mount, network and IPC namespaces, a root that holds Python and its libraries "
                  "only, Landlock where the kernel has it, system-call filter, limits",
    "landlock": "Landlock, system-call filter, limits; a program sees that files and processes exist, not what is in "
                "them",
    "unsafe": "system-call filter and limits alone; a program may read and write whatever this account may",
}
"""Strongest first."""


class Refused(UserError):
    """This host cannot isolate programs, whichever they are."""


_unsafe = False


def allow_unsafe() -> None:
    """From now on, in this process, run programs with too little isolation where there is nothing better."""
    global _unsafe
    _unsafe = True


def strongest() -> str:
    """The strongest isolation that works here; logged when it is not the first. Raises Refused when it is "unsafe" and
    nobody allowed that, or when not even that works."""
    works, refusals = probe()
    if not works:
        raise Refused(f"the sandbox cannot run here: {_text(refusals)}")
    if works == "unsafe" and not _unsafe:
        raise Refused(f"this host cannot isolate programs: {_text(refusals)}; to run them all the same, "
                      f"set reward.allow_unsafe_sandbox: true, of `srpo prepare` --allow-unsafe-sandbox "
                      f"({ISOLATIONS['unsafe']})")
    return works


@cache
def probe() -> tuple[str, dict[str, str]]:
    """The strongest isolation in which a program ran just now, if any, and why each stronger one did not."""
    refusals: dict[str, str] = {}
    for isolation in ISOLATIONS:
        try:
            Sandbox(isolation).close()
        except UserError as e:
            refusals[isolation] = str(e)
            continue
        if refusals:
            log.warning("programs run in isolation %r (%s), because %s", isolation, ISOLATIONS[isolation],
                        _text(refusals))
        return isolation, refusals
    return "", refusals


def _text(refusals: dict[str, str]) -> str:
    return "; ".join(f"{isolation}: {why}" for isolation, why in refusals.items())
