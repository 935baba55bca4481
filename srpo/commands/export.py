"""`srpo export RUN DIR`"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from srpo.commands.log import start_log
from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    export = commands.add_parser(
        "export", help="write the last checkpoint of a run as a Hugging Face directory",
        description="Write the last checkpoint of a run as a directory that transformers and vLLM load. On the CPU, in "
                    "the host's memory.")
    export.add_argument("run", metavar="RUN", type=Path, help="run folder")
    export.add_argument("directory", metavar="DIR", type=Path, help="where to write; created")
    export.set_defaults(handler=run)


def run(args: Namespace) -> int:
    from srpo.folder import config_file

    config_file(args.run)
    # Before torch looks: a model need not fit on one GPU, nor beside the training whose checkpoint it is.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    start_log()
    from srpo.train import export

    export(args.run, args.directory)
    return 0
