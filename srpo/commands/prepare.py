"""`srpo prepare SOURCE... --out DIR`"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from srpo.commands.log import start_log
from srpo.commands.parser import Commands
from srpo.errors import UserError


def add(commands: Commands) -> None:
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
    prepare.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto",
                         help="of weights and arithmetic; auto: the model's own (%(default)s)")
    prepare.add_argument("--workers", metavar="N", type=int, default=os.cpu_count(), help="processes (all cores)")
    prepare.set_defaults(handler=run)


def run(args: Namespace) -> int:
    start_log()
    from srpo.prepare.difficulty import Difficulty
    from srpo.prepare.pipeline import prepare

    difficulty = None
    if args.model:
        difficulty = Difficulty(args.model, args.samples, args.easy, args.hard, max_tokens=args.max_tokens,
                                template=args.template, dtype=args.dtype,
                                allow_unsafe_sandbox=args.allow_unsafe_sandbox)
        if not Path(args.model, "config.json").is_file():
            raise UserError(f"--model {args.model}: no model there, config.json is missing")
    prepare(args.sources, args.out, benchmarks=args.benchmark, difficulty=difficulty, verify=not args.no_verify,
            workers=args.workers, allow_unsafe_sandbox=args.allow_unsafe_sandbox)
    return 0
