"""`srpo doctor`"""

from __future__ import annotations

from argparse import Namespace

from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor", help="what is installed, what is active and why, what is missing",
        description="Say whether `srpo train` can run here; the exit code is 0 if it can, else 1.")
    doctor.set_defaults(handler=run)


def run(args: Namespace) -> int:
    from srpo.doctor import doctor

    return doctor()
