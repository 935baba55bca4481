"""`srpo train CONFIG [section.key=value ...]`"""

from __future__ import annotations

import os
from argparse import Namespace

from srpo.commands.log import start_log
from srpo.commands.parser import Commands
from srpo.errors import UserError, met_before


def add(commands: Commands) -> None:
    train = commands.add_parser(
        "train", help="train, or resume the run that is there",
        description="Train as a YAML file says. Alone it is one rank; for more: torchrun ... -m srpo train CONFIG ...")
    train.add_argument("config", metavar="CONFIG", help="YAML file; srpo/config.py documents every key")
    train.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings in place of the file's")
    train.set_defaults(handler=run)


def run(args: Namespace) -> int:
    if error := met_before():
        raise UserError(error)
    from srpo import config
    from srpo.check import check, check_data
    from srpo.plan.job import Job
    from srpo.plan.shape import Shape

    start_log()
    settings = config.load(args.config, args.overrides)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    check(settings, world_size)
    check_data(settings)
    if cramped := Job(settings, Shape.of(settings), world_size).cramped:
        raise UserError(cramped)

    from srpo.train import train

    train(settings)
    return 0
