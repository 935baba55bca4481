"""Our rollout against plain vLLM on the same prompts, and what controller, ledger and grading take of a step.

    python -m benchmarks.bench_rollout [--model DIR] --out new.json

Rollout: `RolloutEngine` on the trainer's weights, responses taken as they finish, and vLLM's own `LLM.generate` on
weights that it loaded itself, with the same prompts and sampling parameters, in turns in one process. A ratio is plain
tokens a second over ours within a round, of which the median counts. --model: any Hugging Face directory; without it a
tiny model with random weights, whose responses end at random. On CPU vLLM packs its matrices for oneDNN, which ours
cannot do with weights that the trainer updates in place: "unpacked" is the same vLLM with torch's product, as ours.

Step: one replica of --replicas, generation being simulated: passes of vLLM take 20 ms each, in which the host sleeps,
and responses finish, log-normal, within --minutes. Everything else is real: 256 prompts from a curriculum, their
assignment, a tokenizer's decoding, the grader processes on maths and programs, and 8,192 rows in a ledger on this
disk. What counts is the time that the replica waits for any of it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import bench_graders, math_responses
from benchmarks.compare import write
from srpo.balance import assign, expected_lengths
from srpo.config import Config, Resample, Reward, Stage
from srpo.control.curriculum import Curriculum, StepPlan
from srpo.control.ledger import Ledger, RolloutRow
from srpo.data.schema import Problem
from srpo.rewards import Graders, Response

PROMPTS, SAMPLES = 256, 32
PASS = 0.02
"""Seconds of one pass of vLLM."""
RATIO, SHARE = 0.97, 0.02
"""Our rollout is at least this fast against plain vLLM; controller, ledger and grading take at most this of a step."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face directory (default: a tiny random model)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=16, help="of a rollout (%(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="responses to each (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=224, help="of a response (%(default)s)")
    parser.add_argument("--kv-cache-gib", type=float, default=0.5, help="of each engine (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of both in turn (%(default)s)")
    parser.add_argument("--replicas", type=int, default=8, help="that share a step's 8,192 responses (%(default)s)")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1),
                        help="grader processes of the replica (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of simulated generation (%(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="Hugging Face directory (default: a small byte-level BPE)")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        rows = [step(Path(temporary), options), rollout(Path(temporary), options)]
    document = {"device": bench_graders.cpu(), "threads": int(os.environ.get("OMP_NUM_THREADS", "0")), "quick": False,
                "load": os.getloadavg()[0], "rows": rows}
    if options.out is not None:
        write(document, options.out)
    return document


# -- rollout --------------------------------------------------------------------------------------------------------


def rollout(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of both, in turns."""
    import torch
    from vllm import _custom_ops

    from srpo.data import toy
    from srpo.data.prompts import Tokenizer
    from srpo.megatron.step import Trainer, init_distributed
    from srpo.rollout.engine import LLM, RolloutEngine, SamplingParams

    model = options.model or folder / "model"
    if options.model is None:
        toy.write_model(model, seed=1)
    config = Config.model_validate({
        "run": "unused", "model": {"path": str(model), "dtype": options.dtype},
        "data": {"train": ["unused"], "template": "plain", "max_prompt_tokens": options.prompt_tokens},
        "rollout": {"max_response_tokens": options.max_tokens, "kv_cache_gib": options.kv_cache_gib},
        "stages": [{"name": "unused", "domains": ["math"], "until": "steps", "steps": 1}]})
    init_distributed(1, 1)
    trainer = Trainer(config, model)
    trainer.load_hf(model)
    tokenizer = Tokenizer(model, "plain")
    stop_ids = tokenizer.stop_ids
    rng = random.Random(1)
    prompts = [[rng.randrange(trainer.hf.vocab_size) for _ in range(options.prompt_tokens)]
               for _ in range(options.prompts)]
    ours = RolloutEngine(config, trainer, tokenizer)
    ours.wake()
    settings = dict(
        dtype=options.dtype, skip_tokenizer_init=True, generation_config="vllm", logprobs_mode="processed_logprobs",
        distributed_executor_backend="uni", max_model_len=options.prompt_tokens + options.max_tokens,
        max_num_seqs=config.rollout.max_sequences, kv_cache_memory_bytes=int(options.kv_cache_gib * 2**30),
        gpu_memory_utilization=0.05, enforce_eager=not torch.cuda.is_available())
    engines = {"plain": LLM(str(model), **settings)}
    if not torch.cuda.is_available():
        with mock.patch.object(_custom_ops, "_supports_onednn", False):
            engines["unpacked"] = LLM(str(model), **settings)

    def by_us(number: int) -> int:
        passes = ours.generate({str(i): p for i, p in enumerate(prompts)}, step=number, samples=options.samples,
                               temperature=1.0)
        return sum(len(sample.tokens) for finished in passes for sample in finished.values())

    def by_vllm(engine: Any, number: int) -> int:
        torch.manual_seed(number)
        engine.reset_prefix_cache()
        outputs = engine.generate([{"prompt_token_ids": p} for p in prompts], SamplingParams(
            n=options.samples, temperature=1.0, max_tokens=options.max_tokens, stop_token_ids=stop_ids, logprobs=0,
            flat_logprobs=True, detokenize=False), use_tqdm=False)
        return sum(len(c.token_ids) for output in outputs for c in output.outputs)

    contestants: dict[str, Callable[[int], int]] = {
        "srpo": by_us, **{name: partial(by_vllm, engine) for name, engine in engines.items()}}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds + 1):
        for name in sorted(contestants, reverse=number % 2 == 0):
            began = time.perf_counter()
            tokens = contestants[name](number)
            if number:  # the first warms up
                speeds[name].append(tokens / (time.perf_counter() - began))
    ratios = {}
    for name in engines:
        each = [theirs / our for theirs, our in zip(speeds[name], speeds["srpo"], strict=True)]
        ratios[f"{name}_to_ours"] = statistics.median(each)
        print(f"rollout: ours {statistics.median(speeds['srpo']):,.0f} tokens/s, vLLM ({name}) "
              f"{statistics.median(speeds[name]):,.0f}; ours is {1 / statistics.median(each):.3f} of it "
              f"({1 / max(each):.3f} to {1 / min(each):.3f}); required {RATIO}", flush=True)
    return {"case": f"rollout {options.model.name if options.model else 'tiny'} {options.prompts}x{options.samples}",
            "implementation": "srpo", "ratios": ratios, "tokens_per_s": speeds}


# -- a step ---------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that the replica waits, by what it waits for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began


def step(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The first step of the second epoch, whose lengths are known from the first."""
    decode, encode = tokenizer(options.tokenizer)
    items = [(problem, encode(text), grade) for problem, text, grade in responses()]
    rng = random.Random(2)
    lengths = [int(600 * rng.lognormvariate(0, 1)) + 1 for _ in items]
    number = {f"prompt {n}": n for n in range(PROMPTS)}
    stage = Stage(name="s", domains=["math", "code"], until="epochs", epochs=2)
    curriculum = Curriculum({i: "code" if n % 2 else "math" for i, n in number.items()}, [stage],
                            Resample(sampler="plain"), PROMPTS, 1, Ledger(folder / "ledger.sqlite"))

    def rows(plan: StepPlan) -> list[RolloutRow]:
        return [RolloutRow(plan.epoch, plan.step, plan.stage, i, k, "math", 1.0, 1.1, lengths[number[i] * SAMPLES + k],
                           False) for i in plan.prompt_ids for k in range(SAMPLES)]

    first = curriculum.next()
    assert first is not None
    curriculum.record(first, rows(first))
    clock = Clock()
    graders = Graders(Reward(style="boxed"), 4096, options.workers)
    try:
        graders.grade([Response(items[n][0], decode(items[n][1]), 1, False)  # their first answers load libraries
                       for n in (0, SAMPLES) for _ in range(options.workers)])
        began = time.perf_counter()
        with clock.on("controller"):
            plan = curriculum.next()
            assert plan is not None and len(plan.prompt_ids) == PROMPTS
            share = assign(expected_lengths(plan.lengths, [100] * PROMPTS), options.replicas)[0]
        mine = [number[plan.prompt_ids[i]] * SAMPLES + k for i in share for k in range(SAMPLES)]
        for finished in passes(mine, options.minutes * 60):
            with clock.on("submitting"):
                graders.submit({n: Response(items[n][0], decode(items[n][1]), lengths[n], False) for n in finished})
        generated = time.perf_counter() - began
        with clock.on("remaining grades"):
            graded = graders.collect()
        with clock.on("ledger"):
            curriculum.record(plan, rows(plan))
    finally:
        graders.close()
    wrong = [n for n, grade in graded.items() if grade.correct != items[n][2]]
    assert len(graded) == len(mine) and not wrong, wrong[:3]
    whole = time.perf_counter() - began
    total = sum(clock.seconds.values())
    print(f"step: {generated:.1f} s of generation, {len(mine)} responses graded by {options.workers} processes beside "
          f"it, {PROMPTS * SAMPLES} rows written")
    print("  " + ", ".join(f"{what} {seconds * 1e3:.0f} ms" for what, seconds in clock.seconds.items())
          + f": {total / whole:.2%} of the step; required under {SHARE:.0%}", flush=True)
    return {"case": f"step of {options.minutes:g} minutes, {options.replicas} replicas", "implementation": "srpo",
            "ratios": {"share": total / whole}, "seconds": clock.seconds | {"generation": generated},
            "workers": options.workers}


def passes(mine: list[int], seconds: float) -> Iterator[list[int]]:
    """After each pass the responses that it finished: lengths are log-normal, the longest takes all of the time."""
    rng = random.Random(3)
    ends = sorted((rng.lognormvariate(0, 1), n) for n in mine)
    pace = seconds / ends[-1][0]
    began, at = time.perf_counter(), 0
    while at < len(ends):
        time.sleep(PASS)
        now, first = time.perf_counter() - began, at
        while at < len(ends) and ends[at][0] * pace <= now:
            at += 1
        yield [n for _, n in ends[first:at]]


def responses() -> list[tuple[Problem, str, float]]:
    """Maths and programs in turn, SAMPLES to a prompt, with their right grades. All maths answers differ."""
    maths = math_responses.responses("mixed", PROMPTS * SAMPLES, 1)
    program, tests = bench_graders.KINDS["function"]
    code = (Problem("code", "code", "Primes.", tests=tests),
            f"{math_responses.THINKING}\n```python\n{program}\n```", 1.0)
    return [code if n // SAMPLES % 2 else (r.problem, r.text, grade) for n, (r, grade) in enumerate(maths)]


def tokenizer(directory: Path | None) -> tuple[Any, Any]:
    """(decode, encode) of a tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if directory is not None:
        hf = AutoTokenizer.from_pretrained(directory)
    else:
        small = ByteLevelBPETokenizer()
        small.train_from_iterator([math_responses.THINKING, bench_graders.PROGRAM], vocab_size=400)
        hf = PreTrainedTokenizerFast(tokenizer_object=small._tokenizer)
    return hf.decode, hf.encode


if __name__ == "__main__":
    main()
