"""`srpo stage RUN [next]`"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    stage = commands.add_parser(
        "stage", help="how far a run is in its stages; end the current one by hand",
        description="Print the stages of a run: why those that are over ended, and what the current one lacks. With "
                    "`next`, end the current stage after the step that the run is making, or before the first one when "
                    "it is started again; a run that is resumed ends it at the same step.")
    stage.add_argument("run", metavar="RUN", type=Path, help="run folder")
    stage.add_argument("next", metavar="next", nargs="?", choices=["next"], help="end the current stage")
    stage.set_defaults(handler=run)


def run(args: Namespace) -> int:
    from srpo.progress import end_stage, show
    from srpo.terminal import Terminal

    if args.next:
        Terminal(soft_wrap=True, highlight=False).print(end_stage(args.run))
    else:
        show(args.run, Terminal(highlight=False))
    return 0
