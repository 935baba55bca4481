"""The command line; srpo/commands has a file for each command.

Nothing heavy is imported until the arguments and the configuration are known to be good: `--help` and every message
about a bad setting appear before torch loads.

How a failure ends a launch of many ranks: the rank that fails writes its reason where torchrun looks for it, prints it
and exits at once; torchrun then ends the others. Exit codes: 0, 2 for a UserError, 130 for Ctrl-C, 141 when nobody
reads the output any more (`srpo ... | head`), 1 for a defect.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import select
import signal
import sys
import time
import traceback
from typing import NoReturn, TextIO

from srpo.commands import analyze, doctor, export, forecast, history, plan, prepare, stage, train
from srpo.commands import eval as evaluation
from srpo.commands import report as comparison
from srpo.errors import Fault, UserError, rank, report, tell_torchrun
from srpo.printable import visible

ECHO = 2.0
"""Seconds before a rank prints a traceback: the death of one rank breaks the collectives of the others, and torchrun
ends those within a second. Only the cause should speak."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Entry point of the `srpo` script and of `python -m srpo`."""
    faulthandler.enable()
    try:
        try:
            code = command(argv)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except BrokenPipeError:
        for stream in _unread():  # a stream keeps what it could not write, and would fail on it again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 128 + signal.SIGPIPE  # what the shell says of a program that this signal has ended
    if code and "torch" in sys.modules:
        # A normal shutdown joins threads and destroys process groups, which can wait for ever on ranks that are gone,
        # and torchrun ends the launch only once a rank has exited.
        os._exit(code)
    sys.exit(code)


def command(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; failures are reported here. Raises BrokenPipeError when stdout or
    stderr has no reader any more, and SystemExit as argparse does."""
    args = _arguments(argv)
    try:
        return args.handler(args)
    except UserError as e:
        report(f"srpo: error: {e}", lasting=not isinstance(e, Fault))
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
    except BaseException as e:  # torch's CheckpointException is no Exception
        if isinstance(e, BrokenPipeError) and _unread():
            raise
        _report_defect()
        return 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    """As argparse reads them, and settings after the options too, where argparse takes their list to be over."""
    parser = _parser()
    args, more = parser.parse_known_args(argv)
    if more and ("overrides" not in args or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.overrides = [*args.overrides, *more]
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srpo", description="Two-staged history-resampling policy optimization.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (train, stage, evaluation, export, prepare, plan, doctor, history, analyze, forecast, comparison):
        command.add(commands)
    return parser


def _unread() -> list[TextIO]:
    """Of stdout and stderr those that are pipes whose reader has gone. Other pipes break too, as to a grader process
    that died."""
    poll = select.poll()
    streams = {stream.fileno(): stream for stream in (sys.stdout, sys.stderr)}
    for descriptor in streams:
        poll.register(descriptor, 0)  # errors are told unasked
    return [streams[descriptor] for descriptor, _ in poll.poll(0)]


def _report_defect() -> None:
    """Print the traceback, unless it only echoes another rank's end: then torchrun ends this rank while it waits."""
    text = visible(traceback.format_exc())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        time.sleep(ECHO)
    tell_torchrun(text)
    print(f"srpo: rank {rank()} failed:\n{text}", end="", file=sys.stderr)
