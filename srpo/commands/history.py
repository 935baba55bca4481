"""`srpo history RUN`"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    history = commands.add_parser(
        "history", help="what a run's ledger says of its epochs and prompts, as tables or files",
        description="Epochs, pass rates, what was dropped and why, prompts never solved and those that got worse; also "
                    "while the run goes on. docs/ledger.md describes the tables and views behind it.")
    history.add_argument("run", metavar="RUN", type=Path, help="run folder, or its ledger.sqlite")
    history.add_argument("--prompt", metavar="ID", help="everything about one prompt, epoch by epoch")
    history.add_argument("--epoch", metavar="N", type=int, help="only this epoch")
    history.add_argument("--domain", metavar="NAME", help="only prompts of this domain")
    history.add_argument("--limit", metavar="N", type=_positive, default=10, help="lines a table (%(default)s)")
    history.add_argument("--export", metavar="DIR|FILE", type=Path,
                         help="write instead: a folder gets every table and view as Parquet, a FILE.csv or "
                              "FILE.parquet the one that --table names")
    history.add_argument("--table", metavar="NAME", default="pass_rates",
                         help="table or view for a file (%(default)s)")
    history.set_defaults(handler=run)


def run(args: Namespace) -> int:
    from srpo.history.command import export, show

    if args.export:
        export(args.run, args.export, args.table, args.epoch, args.domain)
    else:
        show(args.run, args.prompt, args.epoch, args.domain, args.limit)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}: give a number of lines, 1 or more")
    return int(text)
