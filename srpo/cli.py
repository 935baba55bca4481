"""The command line: `srpo train`, `srpo export`, `srpo prepare`, `srpo plan`, `srpo doctor`.

Nothing heavy is imported until the arguments and the configuration are known to be good: `--help` and every message
about a bad setting appear before torch loads.

How a failure ends a launch of many ranks: the rank that fails writes its reason where torchrun looks for it, prints it
and exits at once; torchrun then ends the others. Exit codes: 0, 2 for a UserError, 130 for Ctrl-C, 1 for a defect.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from srpo.errors import UserError, rank, report, tell_torchrun

ECHO = 2.0
"""Seconds before a rank prints a traceback: the death of one rank breaks the collectives of the others, and torchrun
ends those within a second. Only the cause should speak."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Entry point of the `srpo` script and of `python -m srpo`."""
    faulthandler.enable()
    code = command(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if code and "torch" in sys.modules:
        # A normal shutdown joins threads and destroys process groups, which can wait for ever on ranks that are gone,
        # and torchrun ends the launch only once a rank has exited.
        os._exit(code)
    sys.exit(code)


def command(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; failures are reported here."""
    args = _parser().parse_args(argv)
    try:
        return args.handler(args)
    except UserError as e:
        report(f"srpo: error: {e}")
        return 2
    except ModuleNotFoundError as e:
        report(f"srpo: error: package {e.name!r} is not installed; `srpo doctor` tells how to get it")
        return 2
    except KeyboardInterrupt:
        if rank() == 0:
            print("srpo: interrupted", file=sys.stderr)
        return 130
    except (SystemExit, GeneratorExit):
        raise
    except BaseException:  # torch's CheckpointException is no Exception
        _report_defect()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srpo", description="Two-staged history-resampling policy optimization.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train", help="train, or resume the run that is there",
        description="Train as a YAML file says. Alone it is one rank; for more: torchrun ... -m srpo train CONFIG ...")
    train.add_argument("config", metavar="CONFIG", help="YAML file; srpo/config.py documents every key")
    train.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings in place of the file's")
    train.set_defaults(handler=_train)

    export = commands.add_parser(
        "export", help="write the last checkpoint of a run as a Hugging Face directory",
        description="Write the last checkpoint of a run as a directory that transformers and vLLM load.")
    export.add_argument("run", metavar="RUN", type=Path, help="run folder")
    export.add_argument("directory", metavar="DIR", type=Path, help="where to write; created")
    export.set_defaults(handler=_export)

    prepare = commands.add_parser(
        "prepare", help="turn raw maths and code data into a training set",
        description="Clean, filter, deduplicate and verify problems; docs/data.md has the layouts and the rules. "
                    "Repeated after a kill, it goes on where it was.")
    prepare.add_argument("sources", metavar="SOURCE", nargs="+",
                         help="JSONL, JSON, Parquet or Arrow file, directory of them, or hf:OWNER/NAME[:FILES]")
    prepare.add_argument("--out", metavar="DIR", type=Path, required=True,
                         help="where train.parquet, rejected.parquet and summary.json go; created")
    prepare.add_argument("--benchmark", metavar="SOURCE", action="append", default=[],
                         help="drop what overlaps with its questions; repeatable")
    prepare.add_argument("--no-verify", action="store_true", help="neither grade reference answers nor run solutions")
    prepare.add_argument("--allow-unsafe-sandbox", action="store_true", help="run solutions even where the host cannot "
                         "isolate them: they may read and write whatever this account may")
    prepare.add_argument("--model", metavar="DIR", help="measure difficulty: pass@k with this model through vLLM")
    prepare.add_argument("--samples", metavar="K", type=int, default=8, help="responses a problem (%(default)s)")
    prepare.add_argument("--easy", metavar="RATE", type=float, default=0.75, help="pass rate from which a problem is "
                         "easy (%(default)s)")
    prepare.add_argument("--hard", metavar="RATE", type=float, default=0.25, help="pass rate up to which it is hard "
                         "(%(default)s)")
    prepare.add_argument("--max-tokens", metavar="N", type=int, default=2048, help="of a response (%(default)s)")
    prepare.add_argument("--template", choices=("srpo", "chat", "plain"), default="chat",
                         help="as data.template (%(default)s)")
    prepare.add_argument("--workers", metavar="N", type=int, default=os.cpu_count(), help="processes (all cores)")
    prepare.set_defaults(handler=_prepare)

    plan = commands.add_parser(
        "plan", help="does a configuration fit a cluster, how fast is a step, which layout is better",
        description="Predict memory and time of a configuration on a cluster, without running it; docs/planning.md has "
                    "the formulas. The exit code is 1 where it does not fit.")
    plan.add_argument("config", metavar="CONFIG", help="YAML file")
    plan.add_argument("overrides", metavar="section.key=value", nargs="*",
                      help="settings in place of the file's; before the options")
    plan.add_argument("--gpus", metavar="N", type=int, required=True, help="GPUs in all")
    plan.add_argument("--gpu", default="h100", help="h100 or h200 (%(default)s)")
    plan.add_argument("--ledger", metavar="RUN", type=Path, help="a run whose response lengths to reckon with")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(handler=_plan)

    doctor = commands.add_parser(
        "doctor", help="what is installed, what is active and why, what is missing",
        description="Say whether `srpo train` can run here; the exit code is 0 if it can, else 1.")
    doctor.set_defaults(handler=_doctor)
    return parser


def _train(args: argparse.Namespace) -> int:
    from srpo import config
    from srpo.check import check

    _start_log()
    settings = config.load(args.config, args.overrides)
    check(settings, int(os.environ.get("WORLD_SIZE", "1")))

    from srpo.train import train

    train(settings)
    return 0


def _export(args: argparse.Namespace) -> int:
    if not (args.run / "config.yaml").is_file():
        raise UserError(f"{args.run}: not a run folder, there is no config.yaml in it")

    _start_log()
    from srpo.train import export

    export(args.run, args.directory)
    return 0


def _prepare(args: argparse.Namespace) -> int:
    _start_log()
    from srpo.prepare.difficulty import Difficulty
    from srpo.prepare.pipeline import prepare

    difficulty = None
    if args.model:
        difficulty = Difficulty(args.model, args.samples, args.easy, args.hard, max_tokens=args.max_tokens,
                                template=args.template, allow_unsafe_sandbox=args.allow_unsafe_sandbox)
        if not Path(args.model, "config.json").is_file():
            raise UserError(f"--model {args.model}: no model there, config.json is missing")
    prepare(args.sources, args.out, benchmarks=args.benchmark, difficulty=difficulty, verify=not args.no_verify,
            workers=args.workers, allow_unsafe_sandbox=args.allow_unsafe_sandbox)
    return 0


def _plan(args: argparse.Namespace) -> int:
    from srpo.plan.command import plan

    return plan(args.config, args.overrides, args.gpus, args.gpu, args.ledger, args.json)


def _doctor(args: argparse.Namespace) -> int:
    from srpo.doctor import doctor

    return doctor()


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is at that moment: a live display replaces it, to print above its bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _start_log() -> None:
    """Rank 0 tells what it does, the others only what is wrong; libraries keep their own loggers. What torch,
    Megatron-Core and vLLM warn about is their use of each other; python -W or PYTHONWARNINGS brings it back, and
    TORCH_CPP_LOG_LEVEL what their C++ parts say."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(torch|megatron|vllm)\.")
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    for package in ("srpo", "srpo_kernels"):
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
        logger.propagate = False


def _report_defect() -> None:
    """Print the traceback, unless it only echoes another rank's end: then torchrun ends this rank while it waits."""
    text = traceback.format_exc()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        time.sleep(ECHO)
    tell_torchrun(text)
    print(f"srpo: rank {rank()} failed:\n{text}", end="", file=sys.stderr)
