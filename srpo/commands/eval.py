"""`srpo eval MODEL|RUN --data ... --out DIR`"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from srpo.commands.log import start_log
from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    ev = commands.add_parser(
        "eval", help="avg@k, pass@k and majority@k of a model or a run",
        description="Sample, grade and score; docs/evaluation.md has the benchmarks and the estimates. Repeated after "
                    "a kill, it goes on where it was. On several GPUs: torchrun --nproc-per-node N -m srpo eval ...")
    ev.add_argument("target", metavar="MODEL|RUN", type=Path, help="Hugging Face directory, or a run folder: its "
                    "model, or the latest checkpoint, with the run's template, answer style and limits")
    ev.add_argument("--data", metavar="DATA", nargs="+", required=True,
                    help="aime24, aime25, math500, gsm8k, livecodebench, humaneval, mbpp; a file, directory or "
                         "hf:OWNER/NAME[:FILES], as for `srpo prepare`; or NAME=one of these")
    ev.add_argument("--data-dir", metavar="DIR", type=Path, help="where benchmarks are looked for before the hub")
    ev.add_argument("--out", metavar="DIR", type=Path, required=True,
                    help="where summary.json, problems.parquet and samples/ go; created")
    ev.add_argument("--samples", metavar="N", type=int, help="responses a problem (the run's eval.samples, or 4)")
    ev.add_argument("-k", metavar="K[,K...]", help="of pass@k and majority@k (powers of two up to N, and N)")
    ev.add_argument("--temperature", metavar="T", type=float, help="(the run's eval.temperature, or 1)")
    ev.add_argument("--top-p", metavar="P", type=float, help="(1)")
    ev.add_argument("--max-tokens", metavar="N", type=int,
                    help="of a response (the run's rollout.max_response_tokens, or 4096)")
    ev.add_argument("--seed", metavar="N", type=int, help="of sampling and of the intervals (1)")
    ev.add_argument("--template", choices=("srpo", "chat", "plain"), help="as data.template (the run's, or chat)")
    ev.add_argument("--style", choices=("think_answer", "boxed"), help="as reward.style: where the answer is (the "
                    "run's; boxed for the chat template, else think_answer)")
    ev.add_argument("--stop", metavar="TEXT", nargs="*", help="as rollout.stop: texts that end a response (the run's; "
                    "</answer> for the srpo template, else none); without a text: none")
    ev.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), help="of weights and "
                    "arithmetic (the run's model.dtype, or auto: the model's own)")
    ev.add_argument("--tensor", metavar="N", type=int, help="ranks of one copy of the model (1)")
    ev.add_argument("--chunk", metavar="N", type=int, help="problems that are sampled and written together (as many as "
                    "make 64 responses)")
    ev.add_argument("--workers", metavar="N", type=int, help="grader processes (all cores)")
    ev.add_argument("--allow-unsafe-sandbox", action="store_true", help="run programs even where the host cannot "
                    "isolate them: they may read and write whatever this account may")
    ev.set_defaults(handler=run)


def run(args: Namespace) -> int:
    start_log()
    from srpo.evaluation.command import evaluate

    evaluate(args)
    return 0
