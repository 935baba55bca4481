"""`srpo forecast RUN` and `srpo forecast --simulate [name=value ...]`"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    forecast = commands.add_parser(
        "forecast", help="what the next epochs will have, by sampler, from a run's pass rates",
        description="Predict from a run's stored pass rates, for each sampler, the sizes of the next epochs, the share "
                    "of informative groups, the rollouts spent and when the data run out; or compare samplers without "
                    "a model. docs/forecast.md has the formulas and what is assumed.")
    forecast.add_argument("run", metavar="RUN", type=Path, nargs="?", help="run folder, or its ledger.sqlite")
    forecast.add_argument("--epochs", metavar="N", type=int, default=5, help="epochs to predict (%(default)s)")
    forecast.add_argument("--from-epoch", metavar="N", type=int,
                          help="back-test: forecast from epochs 1 to N alone, and compare with what came")
    forecast.add_argument("--simulate", metavar="name=value", nargs="*",
                          help="no run: simulate every sampler on a million prompts; prompts=20000 and the like change "
                               "the scenario")
    forecast.add_argument("--json", action="store_true", help="print JSON")
    forecast.set_defaults(handler=run)


def run(args: Namespace) -> int:
    from srpo.forecast import command

    command.run(args.run, args.epochs, args.from_epoch, args.simulate, args.json)
    return 0
