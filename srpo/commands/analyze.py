"""`srpo analyze RUN`"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    analyze = commands.add_parser(
        "analyze", help="how often responses recheck, hesitate, explore, loop, ... over training",
        description="Count behaviour patterns in the responses that a run has stored; docs/analysis.md has the "
                    "definitions.")
    analyze.add_argument("run", metavar="RUN", type=Path, help="run folder")
    analyze.add_argument("--patterns", metavar="FILE", type=Path, help="YAML file of patterns (the package's own)")
    analyze.add_argument("--examples", metavar="N", type=int, default=1, help="responses shown of each (%(default)s)")
    analyze.add_argument("--show", metavar="STEP|PROMPT", help="print stored responses instead: of a step, or to a "
                         "prompt (its id)")
    analyze.add_argument("--json", action="store_true", help="print JSON: every step, domain and pattern")
    analyze.set_defaults(handler=run)


def run(args: Namespace) -> int:
    from srpo.analysis.command import analyze, show

    if args.show:
        show(args.run, args.show)
    else:
        analyze(args.run, args.patterns, args.examples, args.json)
    return 0
