"""`srpo eval`: rank 0 prepares, each replica of the model makes its share of the chunks, rank 0 adds up.

A launch of several ranks is one of `torchrun`; vLLM splits the model over --tensor adjacent ranks, and the replicas
take turns at the chunks.
"""

from __future__ import annotations

import json
import os
import platform
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

import srpo
from srpo import folder
from srpo.comm import all_gather, broadcast, join, set_timeout
from srpo.config import Reward
from srpo.data.prompts import Tokenizer
from srpo.errors import UserError
from srpo.evaluation import data, report, settings, subject
from srpo.evaluation.data import DataSet
from srpo.evaluation.sampling import Chunk, chunks, sample
from srpo.evaluation.settings import Settings
from srpo.files import write_json, writing
from srpo.rewards import Graders
from srpo.terminal import Terminal, counting


@dataclass(frozen=True)
class Plan:
    """What every rank knows: the model's folder, how to sample and grade, what is left to do; `longest` is the longest
    prompt, in tokens."""

    model: str
    settings: Settings
    reward: Reward
    longest: int
    todo: list[Chunk]
    done: int


@dataclass(frozen=True)
class Ours:
    """What rank 0 alone needs."""

    lock: IO[str]
    sets: list[DataSet]
    ks: list[int]
    recorded: dict[str, Any]


def evaluate(args: Namespace) -> dict[str, Any] | None:
    """Run, or go on with, what the command line says. Every rank calls it; rank 0 returns the summary, which is also in
    OUT/summary.json. Raises UserError for input that cannot be evaluated."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    join()
    ours, plan = _prepare(args) if dist.get_rank() == 0 else (None, None)
    if dist.get_world_size() > 1:  # the tests of a benchmark can be gigabytes
        plan = broadcast(plan)
    assert plan is not None
    if plan.todo:
        _sample(plan, args.out, args.workers)
    all_gather(None)  # until the last has written
    summary = _report(ours, plan, args.out) if ours else None
    if not plan.todo:
        dist.destroy_process_group()  # otherwise it is vLLM's, when the interpreter exits
    return summary


def _prepare(args: Namespace) -> tuple[Ours, Plan]:
    """Read, check and record everything, before a model is loaded."""
    settings.check_folder(args.out, ("checkpoint", "model", ".model.partial", ".lock"))
    with writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    lock = folder.claim(args.out)
    found = subject.find(args.target, args.out)
    given = {name: getattr(args, name) for name in Settings.__dataclass_fields__}
    chosen = settings.settle(given, found.config)
    ks = settings.ks(args.k, chosen.samples)
    if (ranks := dist.get_world_size()) % chosen.tensor:
        raise UserError(f"--tensor {chosen.tensor}: the number of ranks, {ranks}, is no multiple of it; start them "
                        f"with torchrun --nproc-per-node {chosen.tensor} -m srpo eval ...")
    reward = settings.reward(chosen, found.config, args.allow_unsafe_sandbox)
    sets = data.read(args.data, args.data_dir, chosen.style, reward.custom)
    if not any(p.domain == "other" for s in sets for p in s.problems):
        reward = reward.model_copy(update={"custom": []})  # a user's function need not be here
    longest = _longest(found.folder, sets, chosen)
    identity = found.identity()
    versions = {name: _version(name) for name in ("vllm", "torch", "transformers")}
    versions |= {"srpo": srpo.__version__, "device": _device()}
    settings.claim(args.out, chosen, identity["sha256"], {s.name: s.digest for s in sets}, versions)
    every = chunks(sets, chosen.chunk)
    with writing(args.out):
        (args.out / "samples").mkdir(exist_ok=True)
        for torn in (args.out / "samples").glob("*.part"):
            torn.unlink()
    todo = [chunk for chunk in every if not chunk.file(args.out).exists()]
    recorded = {
        "model": identity | {"target": str(args.target)}, "settings": asdict(chosen),
        "data": {s.name: {"problems": len(s.problems), "sha256": s.digest, "files": s.files} for s in sets},
        "versions": versions | {"python": platform.python_version()}}
    done = chosen.samples * sum(len(chunk.problems) for chunk in every if chunk not in todo)
    return Ours(lock, sets, ks, recorded), Plan(str(found.folder), chosen, reward, longest, todo, done)


def _longest(model: Path, sets: Sequence[DataSet], chosen: Settings) -> int:
    """The longest prompt. Raises UserError when a prompt is unusable, or the model has too few positions."""
    problems = [p for s in sets for p in s.problems]
    prompts = Tokenizer(model, chosen.template).prompts(problems)
    name = max(prompts, key=lambda i: len(prompts[i]))
    longest, described = len(prompts[name]), json.loads((model / "config.json").read_text())
    limit = described.get("max_position_embeddings")
    rope = described.get("rope_parameters") or described.get("rope_scaling") or {}
    stretched = rope.get("rope_type", rope.get("type", "default")) != "default"  # then vLLM knows how far
    if limit and not stretched and longest + chosen.max_tokens > limit:
        raise UserError(f"--max-tokens = {chosen.max_tokens}: with the {longest} tokens of problem {name!r} it exceeds "
                        f"the model's {limit} positions; at most {limit - longest}")
    return longest


def _sample(plan: Plan, out: Path, workers: int | None) -> None:
    from srpo.rollout.standalone import StandaloneEngine  # takes seconds to import: first let bad input speak

    rank, tensor = dist.get_rank(), plan.settings.tensor
    replica, replicas = rank // tensor, dist.get_world_size() // tensor
    share = plan.todo[replica::replicas]
    graders = None
    if rank % tensor == 0:
        local = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // tensor)
        graders = Graders(plan.reward, plan.settings.max_tokens,
                          workers or max(1, len(os.sched_getaffinity(0)) // local))
    engine = StandaloneEngine(plan.model, plan.settings.template, plan.settings.max_tokens,
                              max_prompt=plan.longest, tensor=tensor, dtype=plan.settings.dtype,
                              stop=plan.settings.stop)
    set_timeout(timedelta(days=7))  # replicas wait for the slowest at the end; one that dies ends the launch at once
    with counting(Terminal(stderr=True), disable=rank > 0) as progress:
        total = plan.settings.samples * sum(len(chunk.problems) for chunk in share)
        bar = progress.add_task("responses", total=plan.done + total, completed=plan.done)
        sample(share, out, engine, graders, plan.settings, lambda n: progress.advance(bar, n))
    if graders:
        graders.close()


def _report(ours: Ours, plan: Plan, out: Path) -> dict[str, Any]:
    scored = report.score(chunks(ours.sets, plan.settings.chunk), out, ours.ks)
    summary: dict[str, Any] = report.summarize(scored, ours.sets, plan.settings.seed) | {
        "model": ours.recorded["model"], "settings": ours.recorded["settings"], "inputs": ours.recorded["data"],
        "versions": ours.recorded["versions"]}
    report.write_problems(scored, out / "problems.parquet")
    write_json(out / "summary.json", summary)
    model, s = ours.recorded["model"], plan.settings
    title = (f"{model['target']}{' ' + model['checkpoint'] if model['checkpoint'] else ''}: {s.samples} samples, "
             f"temperature {s.temperature:g}, top-p {s.top_p:g}, at most {s.max_tokens:,} tokens, seed {s.seed}")
    Terminal().print(report.table(summary, title))
    return summary


def _version(package: str) -> str:
    """The CPU build of vLLM is a package of another name."""
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise UserError(f"package {package!r} is not installed; `srpo doctor` tells how to get it")


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {platform.machine()}"
