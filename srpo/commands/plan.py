"""`srpo plan CONFIG [section.key=value ...] --gpus N`"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    plan = commands.add_parser(
        "plan", help="does a configuration fit a cluster, how fast is a step, which layout is better",
        description="Predict memory and time of a configuration on a cluster, without running it; docs/planning.md has "
                    "the formulas. The exit code is 1 where it does not fit.")
    plan.add_argument("config", metavar="CONFIG", help="YAML file")
    plan.add_argument("overrides", metavar="section.key=value", nargs="*",
                      help="settings in place of the file's")
    plan.add_argument("--gpus", metavar="N", type=int, required=True, help="GPUs in all")
    plan.add_argument("--gpu", default="h100", help="h100 or h200 (%(default)s)")
    plan.add_argument("--ledger", metavar="RUN", type=Path, help="a run whose response lengths to reckon with")
    plan.add_argument("--mean-tokens", metavar="N", type=int, help="mean response to reckon with (2500, or a third of "
                      "rollout.max_response_tokens where that is less)")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(handler=run)


def run(args: Namespace) -> int:
    from srpo.plan.command import plan

    return plan(args.config, args.overrides, args.gpus, args.gpu, args.ledger, args.mean_tokens, args.json)
