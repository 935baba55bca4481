"""Supervised steps on worked solutions before reinforcement learning: a cold start.

Not part of SRPO, which starts from a base model that already solves some problems. The loss is the policy loss with
every advantage 1 and ratio 1, whose gradient is that of the negative log-likelihood. The settings of the run's own loss
(`algorithm`, rollout.temperature) take no part.
"""

from __future__ import annotations

import logging
import math
import random

import numpy as np
import torch.distributed as dist
from srpo_kernels import PolicyLossConfig

from srpo.batch import Sample, normalizer, pack
from srpo.comm import all_gather
from srpo.config import Config, WarmStart
from srpo.data.prompts import Tokenizer
from srpo.data.schema import Problem, read_problems
from srpo.errors import UserError
from srpo.megatron.step import Trainer

log = logging.getLogger(__name__)


def warm_start(config: Config, settings: WarmStart, trainer: Trainer, tokenizer: Tokenizer, *, rank: int,
               ranks: int) -> None:
    """Train in place for `settings.steps`; which rows a step sees depends on the seed and the step alone.

    Micro-batches are as large as the run's (batch.micro_batch, batch.micro_batch_tokens). Raises UserError for a row
    that exceeds the latter.
    """
    rows = read_problems(settings.data, need_response=True)
    prompts = tokenizer.prompts(rows)
    rows = [r for r in rows if r.id in prompts]  # with data.overlong: drop
    samples = [Sample(np.asarray(prompts[r.id], np.int32), np.asarray(response, np.int32))
               for r, response in zip(rows, tokenizer.responses(rows), strict=True)]
    _check_lengths(rows, samples, config.batch.micro_batch_tokens)
    ones = [1.0] * len(samples)
    reports = trainer.is_last_stage and dist.get_rank() % config.parallel.tensor == 0
    for step in range(settings.steps):
        chosen = random.Random(f"{config.seed} warm start {step}").choices(range(len(samples)), k=settings.batch)
        total = normalizer(samples, chosen, "token", 1)
        batches = pack(samples, ones, chosen, sequences=config.batch.micro_batch,
                       tokens=config.batch.micro_batch_tokens, rank=rank, ranks=ranks, multiple=config.parallel.tensor)
        metrics = trainer.forward_backward(batches, total, PolicyLossConfig())
        trainer.optimizer_step(_learning_rate(settings, step))
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            mine = sum(float(m.logprobs.sum()) for m in metrics)  # 0 where masked
            parts = all_gather(mine if reports else 0.0)
            log.info("warm start: step %d of %d, loss %.4f", step + 1, settings.steps, -sum(parts) / total)


def _check_lengths(rows: list[Problem], samples: list[Sample], limit: int | None) -> None:
    for row, sample in zip(rows, samples, strict=True):
        if limit is not None and sample.length > limit:
            raise UserError(f"warm_start.data: problem {row.id!r} and its response have {sample.length} tokens, "
                            f"batch.micro_batch_tokens is {limit}; raise that, or leave the problem out")


def _learning_rate(settings: WarmStart, step: int) -> float:
    """Linear warm-up over a tenth of the steps, then cosine to zero."""
    warmup = max(1, settings.steps // 10)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))
