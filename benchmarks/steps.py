"""A run of the trainer that only takes steps, for the benchmarks that look into them. Nothing is learnt."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from benchmarks.bench_step import QUICKSTART, BenchmarkRun, settings
from srpo import config as configuration
from srpo.check import check
from srpo.comm import broadcast
from srpo.errors import UserError
from srpo.megatron.step import init_distributed

AnyRun = TypeVar("AnyRun", bound=BenchmarkRun)


@contextmanager
def started(kind: type[AnyRun], file: Path | None, overrides: list[str], steps: int) -> Iterator[AnyRun]:
    """A run in a temporary folder, with as much of the configuration changed as bench_step.settings does."""
    from srpo.rollout.engine import RolloutEngine

    layout = configuration.load(file or QUICKSTART, overrides)
    init_distributed(layout.parallel.tensor, layout.parallel.pipeline)
    with tempfile.TemporaryDirectory() as temporary:
        config = settings(file, overrides, steps, broadcast(Path(temporary)))
        check(config, dist.get_world_size())
        run = kind(config)
        run.engine = RolloutEngine(config, run.trainer, run.tokenizer)
        yield run
        run.close()
        dist.barrier()  # rank 0 removes the folder


def take(run: BenchmarkRun) -> dict[str, Any]:
    """One step, and its metrics."""
    plan = run.next_plan()
    assert plan is not None
    return run.step(plan)


def parser(description: str | None, steps: int) -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings in place of the file's")
    arguments.add_argument("--config", type=Path, help="YAML file (the quickstart's, with its model before training)")
    arguments.add_argument("--steps", type=int, default=steps, help="(%(default)s)")
    arguments.add_argument("--out", type=Path, help="write everything as JSON")
    return arguments


def name_of(file: Path | None) -> str:
    return (file or QUICKSTART).stem


def run_main(main: Callable[[], Any], name: str) -> None:
    """Exit code 2 and one line for a problem of the user's."""
    try:
        main()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
