"""The step's numbers: advantages in, metrics out, and the canary between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import pstdev
from typing import Any, NamedTuple

import torch
from srpo_kernels import PolicyLossMetrics, group_advantage

from srpo.batch import MicroBatch, Sample
from srpo.config import Algorithm
from srpo.data.schema import DOMAINS, Problem
from srpo.errors import Fault, UserError
from srpo.rewards.compose import BROKEN, Graded


def advantages(graded: Sequence[Graded], truncated: Sequence[bool], group: int, algorithm: Algorithm) -> list[float]:
    """One advantage a sample, over consecutive groups of `group` samples. Truncated responses still count in their
    group's mean; with algorithm.truncated = "zero" their own advantage is then zero. What could not be graded has none
    and is no part of its group: its reward says nothing of the response, and where rewards can be negative, zero would
    be a good one."""
    offsets = torch.arange(0, len(graded) + 1, group)
    rewards, valid = torch.tensor([g.reward for g in graded]), torch.tensor([not g.failed for g in graded])
    values: list[float] = group_advantage(rewards, offsets, scale=algorithm.advantage, valid=valid).tolist()
    if algorithm.truncated == "zero":
        values = [0.0 if cut else a for a, cut in zip(values, truncated, strict=True)]
    return values


class Difference(NamedTuple):
    """|trainer - rollout| log-probs over so many tokens that this step's policy sampled: their sum and the largest."""

    tokens: int
    total: float
    largest: float

    @staticmethod
    def merge(parts: Iterable[Difference]) -> Difference:
        tokens, totals, largest = zip(*parts, strict=True)
        return Difference(sum(tokens), sum(totals), max(largest))


@dataclass
class Update:
    """Sums over the response tokens of an update, addable over micro-batches, ranks and optimizer steps."""

    tokens: float = 0
    """Response tokens."""
    processed: int = 0
    """Tokens through the model, prompts included."""
    policy_loss: float = 0
    entropy: float = 0
    clipped: float = 0
    kl: float = 0
    grad_norm: float = 0
    """Of the last one, not a sum."""
    diffs: dict[int, Difference] = field(default_factory=dict)
    """How far trainer_logprobs are from rollout_logprobs, by the sample's index among the step's, where any are."""

    @staticmethod
    def merge(parts: Sequence[Update]) -> Update:
        total = Update()
        for part in parts:
            for f in fields(Update):
                if f.name not in ("grad_norm", "diffs"):
                    setattr(total, f.name, getattr(total, f.name) + getattr(part, f.name))
            total.grad_norm = part.grad_norm
            total.diffs |= part.diffs
        return total


def update_statistics(metrics: Sequence[PolicyLossMetrics], batches: Sequence[MicroBatch]) -> Update:
    """What one data-parallel replica's micro-batches report; on its last pipeline stage."""
    parts = []
    for m, batch in zip(metrics, batches, strict=True):
        part = Update(tokens=float(m.tokens), processed=len(batch.tokens), policy_loss=float(m.policy_loss),
                      entropy=float(m.entropy_sum), clipped=float(m.clipped), kl=float(m.kl))
        if m.rollout_diff is not None:
            diff = m.rollout_diff.float().nan_to_num(nan=torch.inf)
            counted = batch.mask if batch.fresh is None else batch.mask & batch.fresh  # an older policy's must differ
            counted = counted.to(diff.device)
            lengths = batch.cu_rows.diff().long().to(diff.device)
            of = [torch.segment_reduce(x, how, lengths=lengths, initial=0).tolist() for x, how in (
                (counted.float(), "sum"), (diff.where(counted, 0), "sum"), (diff.where(counted, 0), "max"))]
            part.diffs = {i: Difference(int(tokens), total, largest) for i, tokens, total, largest in zip(
                batch.sample_index.tolist(), *of, strict=True) if tokens}
        parts.append(part)
    return Update.merge(parts)


def by_prompt(diffs: Mapping[int, Difference], group: int) -> dict[int, Difference]:
    """The same by the prompt's index, for groups of `group` samples."""
    members: dict[int, list[Difference]] = {}
    for sample, diff in diffs.items():
        members.setdefault(sample // group, []).append(diff)
    return {prompt: Difference.merge(parts) for prompt, parts in members.items()}


def check_canary(update: Update, step: int, prompt_ids: list[str], group: int, threshold: float) -> None:
    """Raise UserError when the trainer's and vLLM's log-probs of the tokens that vLLM sampled for a prompt differ by
    more than `threshold` on average.

    Both ran the same weights on the same tokens: a large difference means that vLLM generated with other weights (or a
    stale cache), and that training on its samples would be silently wrong. A mean, since rounding alone makes the
    largest of millions of tokens as large as one likes; by prompt, since one replica generates a prompt's responses,
    and the others would hide it.
    """
    prompts = by_prompt(update.diffs, group)
    worst = max(prompts, key=lambda prompt: prompts[prompt].total / prompts[prompt].tokens, default=None)
    if worst is None:
        return
    tokens, total, largest = prompts[worst]
    if total / tokens > threshold:
        raise UserError(
            f"step {step}: prompt {prompt_ids[worst]!r}: trainer and rollout log-probs of {tokens} sampled tokens "
            f"differ by {total / tokens:.3g} on average, one by {largest:.3g}; rollout.canary is {threshold:g}. vLLM "
            "does not run the trainer's weights; nothing was updated. If rounding explains it (bfloat16), raise "
            "rollout.canary")


def check_graders(problems: Sequence[Problem], graded: Sequence[Graded], step: int) -> None:
    """Raise UserError when nothing of a domain, of `BROKEN` problems or more, could be graded: the ledger, by which
    prompts leave and stages end, would hold that the policy solves nothing. It is the machine's Fault, but for what a
    user's function raises, and would raise again."""
    group = len(graded) // len(problems)
    for domain in DOMAINS:
        found = [g for i, g in enumerate(graded) if problems[i // group].domain == domain]
        if len(found) >= BROKEN * group and all(g.failed for g in found):
            faults = [g for g in found if not g.mistaken]
            told = (f"step {step}: none of the {len(found)} responses to {domain} problems could be graded: "
                    f"{(faults or found)[-1].reason}; nothing was recorded or updated")
            if faults:
                raise Fault(f"{told}. If the machine is merely slow, raise reward.timeout or lower reward.workers")
            raise UserError(told)


def step_metrics(problems: list[Problem], samples: list[Sample], graded: list[Graded], advantage: list[float],
                 update: Update, times: dict[str, float], left: Iterable[Sample] = ()) -> dict[str, Any]:
    """The step's line in metrics.jsonl, weights apart. Domains without a sample in the step have no entry. `left`: the
    responses that the next step goes on with."""
    group = len(samples) // len(problems)
    metrics: dict[str, Any] = {
        "reward/mean": _mean([g.reward for g in graded]),
        "length/mean": _mean([len(s.tokens) for s in samples]),
        "reward/failed": sum(g.failed for g in graded),
        "rollout/truncated": _mean([s.truncated for s in samples]),
    }
    for domain in DOMAINS:
        chosen = [i for i in range(len(samples)) if problems[i // group].domain == domain]
        if chosen:
            metrics[f"reward/{domain}"] = _mean([graded[i].reward for i in chosen])
            metrics[f"accuracy/{domain}"] = _mean([graded[i].correct for i in chosen])
            metrics[f"length/{domain}"] = _mean([len(samples[i].tokens) for i in chosen])
    groups = [graded[i : i + group] for i in range(0, len(graded), group)]
    names = sorted({name for g in graded for name in g.parts})  # what could not be graded has none
    metrics |= {f"reward/parts/{name}": _mean([g.parts.get(name, 0.0) for g in graded]) for name in names}
    diff = Difference.merge(update.diffs.values()) if update.diffs else None
    metrics |= {
        "reward/std": _mean([pstdev(g.reward for g in members) for members in groups]),
        "groups/zero_advantage": _mean([not any(advantage[i : i + group]) for i in range(0, len(samples), group)]),
        "groups/all_correct": _mean([all(g.correct >= 1 for g in members) for members in groups]),
        "groups/all_wrong": _mean([all(g.correct <= 0 for g in members) for members in groups]),
        "loss/policy": update.policy_loss / update.tokens,
        "policy/entropy": update.entropy / update.tokens,
        "policy/clip_frac": update.clipped / update.tokens,
        "policy/kl": update.kl / update.tokens,
        "grad/norm": update.grad_norm,
        "rollout/logprob_diff_mean": diff and diff.total / diff.tokens,
        "rollout/logprob_diff_max": diff and diff.largest,
        "rollout/stale": sum(s.stale for s in samples) / sum(len(s.tokens) for s in samples),
        "rollout/tokens_per_s": sum(len(s.tokens) - s.stale for s in (*samples, *left)) / times["time/rollout"],
        "train/tokens_per_s": update.processed / times["time/update"],
    }
    return metrics | times


def of_all_replicas(times: Mapping[str, float], generating: Sequence[float]) -> dict[str, float]:
    """Rank 0's times of a step, `generating` being every rank's seconds of generation: where rank 0 had less to
    generate than others, or nothing, it has waited for them in the next phase."""
    waited = max(generating) - generating[0]
    return {**times, "time/rollout": times["time/rollout"] + waited,
            "time/reward": max(0.0, times["time/reward"] - waited)}


def names_of(files: Sequence[str]) -> dict[str, str]:
    """What a metric calls each file: its name, or its path where another file has that name too."""
    names = [Path(file).name for file in files]
    return {file: name if names.count(name) == 1 else file for file, name in zip(files, names, strict=True)}


def average_at_k(problems: Sequence[Problem], graded: Sequence[Graded], files: Mapping[str, str]) -> dict[str, float]:
    """avg@k by domain, as eval/math, and also by file, as eval/aime.jsonl, where the problems are of several: the mean
    correctness of all samples of all its problems.

    `graded` holds the same number of consecutive samples for each problem; `files`: by the problem's id.
    """
    k = len(graded) // len(problems)
    several = len(set(files.values())) > 1
    scores: dict[str, list[float]] = {}
    for i, problem in enumerate(problems):
        correct = [g.correct for g in graded[i * k : (i + 1) * k]]
        for name in [problem.domain, files[problem.id]] if several else [problem.domain]:
            scores.setdefault(name, []).extend(correct)
    return {f"eval/{name}": _mean(s) for name, s in scores.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
