"""The step's numbers: advantages in, metrics out, and the canary between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from srpo_kernels import PolicyLossMetrics, group_advantage

from srpo.batch import MicroBatch, Sample
from srpo.config import Algorithm
from srpo.data.schema import DOMAINS, Problem
from srpo.errors import UserError
from srpo.rewards.compose import Graded


def advantages(rewards: list[float], truncated: list[bool], group: int, algorithm: Algorithm) -> list[float]:
    """One advantage a sample, over consecutive groups of `group` samples. Truncated responses still count in their
    group's mean; with algorithm.truncated = "zero" their own advantage is then zero."""
    offsets = torch.arange(0, len(rewards) + 1, group)
    values: list[float] = group_advantage(torch.tensor(rewards), offsets, scale=algorithm.advantage).tolist()
    if algorithm.truncated == "zero":
        values = [0.0 if cut else a for a, cut in zip(values, truncated, strict=True)]
    return values


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
    compared: float = 0
    """Response tokens that have a rollout log-prob."""
    diff_sum: float = 0
    diff_max: float = -1
    diff_sample: int = -1
    """Index, among the step's samples, of the token with the largest difference."""
    grad_norm: float = 0

    def without_comparison(self) -> Update:
        """The same, but for what compares the trainer with the rollout."""
        return replace(self, compared=0, diff_sum=0, diff_max=-1, diff_sample=-1)

    @staticmethod
    def merge(parts: Sequence[Update]) -> Update:
        total = Update()
        for part in parts:
            if part.diff_max > total.diff_max:
                total.diff_max, total.diff_sample = part.diff_max, part.diff_sample
            for f in fields(Update):
                if not f.name.startswith(("diff_max", "diff_sample", "grad_norm")):
                    setattr(total, f.name, getattr(total, f.name) + getattr(part, f.name))
            total.grad_norm = part.grad_norm or total.grad_norm
        return total


def update_statistics(metrics: Sequence[PolicyLossMetrics], batches: Sequence[MicroBatch]) -> Update:
    """What one data-parallel replica's micro-batches report; on its last pipeline stage."""
    parts = []
    for m, batch in zip(metrics, batches, strict=True):
        part = Update(tokens=float(m.tokens), processed=len(batch.tokens), policy_loss=float(m.policy_loss),
                      entropy=float(m.entropy_sum), clipped=float(m.clipped), kl=float(m.kl))
        if m.rollout_diff is not None and part.tokens and (batch.fresh is None or bool(batch.fresh.any())):
            diff = m.rollout_diff.nan_to_num(nan=torch.inf)
            if batch.fresh is not None:  # what an older policy sampled must differ
                diff = diff.where(batch.fresh.to(diff.device), 0)
            worst = int(diff.argmax())
            sequence = int(torch.searchsorted(batch.cu_rows, worst, right=True)) - 1
            part.compared = part.tokens if batch.fresh is None else int(batch.fresh.sum())
            part.diff_sum = float(diff.sum())
            part.diff_max = float(diff[worst])
            part.diff_sample = int(batch.sample_index[sequence])
        parts.append(part)
    return Update.merge(parts)


def check_canary(update: Update, step: int, prompt_ids: list[str], group: int, threshold: float) -> None:
    """Raise UserError when the trainer and vLLM disagree on a token that vLLM sampled by more than `threshold`.

    Both ran the same weights on the same tokens: a large difference means that vLLM generated with other weights (or a
    stale cache), and that training on its samples would be silently wrong.
    """
    if update.diff_max > threshold:
        prompt, sample = divmod(update.diff_sample, group)
        raise UserError(
            f"step {step}: prompt {prompt_ids[prompt]!r}, sample {sample}: trainer and rollout log-probs differ by "
            f"{update.diff_max:.3g}, rollout.canary is {threshold:g}. vLLM does not run the trainer's weights; nothing "
            "was updated. If rounding explains it (bfloat16, long responses), raise rollout.canary")


def step_metrics(problems: list[Problem], samples: list[Sample], graded: list[Graded], advantage: list[float],
                 update: Update, times: dict[str, float]) -> dict[str, Any]:
    """The step's line in metrics.jsonl, weights apart. Domains without a sample in the step have no entry."""
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
    metrics |= {
        "groups/zero_advantage": _mean([not any(advantage[i : i + group]) for i in range(0, len(samples), group)]),
        "groups/all_correct": _mean([all(g.correct >= 1 for g in members) for members in groups]),
        "groups/all_wrong": _mean([all(g.correct <= 0 for g in members) for members in groups]),
        "loss/policy": update.policy_loss / update.tokens,
        "policy/entropy": update.entropy / update.tokens,
        "policy/clip_frac": update.clipped / update.tokens,
        "policy/kl": update.kl / update.tokens,
        "grad/norm": update.grad_norm,
        "rollout/logprob_diff_mean": update.diff_sum / update.compared if update.compared else None,
        "rollout/logprob_diff_max": update.diff_max if update.compared else None,
        "rollout/stale": sum(s.stale for s in samples) / sum(len(s.tokens) for s in samples),
        "rollout/tokens_per_s": sum(len(s.tokens) - s.stale for s in samples) / times["time/rollout"],
        "train/tokens_per_s": update.processed / times["time/update"],
    }
    return metrics | times


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
