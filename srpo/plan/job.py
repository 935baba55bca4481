"""One configuration on a number of GPUs: the quantities that memory and time formulas share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from srpo.config import Config
from srpo.plan.shape import Shape

FLOAT32 = 4
BLOCK = 128
"""Tokens of one block of vLLM's KV cache on CPU; GPUs have smaller ones."""


@dataclass(frozen=True)
class Job:
    """`config` on `gpus` GPUs. srpo.check has accepted it."""

    config: Config
    shape: Shape
    gpus: int

    @property
    def tensor(self) -> int:
        return self.config.parallel.tensor

    @property
    def pipeline(self) -> int:
        return self.config.parallel.pipeline

    @property
    def data(self) -> int:
        """Data-parallel ranks, over which the optimizer's state is divided."""
        return self.gpus // self.config.parallel.ranks

    @property
    def replicas(self) -> int:
        """vLLM engines' replicas."""
        return self.gpus // self.config.rollout_ranks

    @property
    def aliased(self) -> bool:
        """vLLM's parameters are the trainer's."""
        theirs = (self.config.rollout_tensor, self.config.rollout.pipeline)
        return theirs == (self.tensor, self.pipeline)

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter and of an activation."""
        return {"float32": 4, "bfloat16": 2}[self.config.model.dtype]

    @property
    def responses(self) -> int:
        """Of a step, over all replicas."""
        return self.config.batch.prompts * self.config.batch.samples

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the trainer reads: a prompt and a response at their limits. The last
        token is predicted, never read."""
        return self.config.data.max_prompt_tokens + self.config.rollout.max_response_tokens - 1

    @property
    def micro_batch_tokens(self) -> int:
        """Most tokens of one forward pass, padded as for sequence parallelism."""
        batch = self.config.batch
        return _up(batch.micro_batch_tokens or batch.micro_batch * self.longest, self.tensor)

    @property
    def micro_batch_rows(self) -> int:
        """Most response tokens of one forward pass; under a token budget prompts may be short."""
        batch = self.config.batch
        return batch.micro_batch_tokens or batch.micro_batch * self.config.rollout.max_response_tokens

    def micro_batches(self, read: float, responses: float) -> int:
        """Forward passes of one data-parallel rank over so many tokens, of so many responses."""
        batch = self.config.batch
        if batch.micro_batch_tokens:
            return math.ceil(read / batch.micro_batch_tokens)
        return math.ceil(responses / batch.micro_batch)

    @cached_property
    def stages(self) -> list[int]:
        """Elements of the parameter buffer on a rank of each pipeline stage, Megatron's padding counted: parameters
        begin at multiples of 64 elements, buffers end at multiples of 128 and of the data-parallel size."""
        divisor = math.lcm(self.data, 128)
        found = []
        for stage in range(self.pipeline):
            sizes = self.shape.stage(stage, self.tensor, self.pipeline)
            # Tied embeddings that two stages share are a bucket of their own on both, padded by itself.
            shared = self.shape.tied and self.pipeline > 1 and stage in (0, self.pipeline - 1)
            own = self.shape.embedding(self.tensor) if shared else 0
            found.append(_up(sum(_up(n, 64) for n in sizes) - _up(own, 64), divisor) + _up(own, divisor))
        return found

    @property
    def split_hidden(self) -> int:
        """Width of the residual stream a token and rank: sequence parallelism divides its tokens."""
        return self.shape.hidden // (self.tensor if self.config.parallel.sequence else 1)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache that one token takes on a rank."""
        heads = max(1.0, self.shape.kv_heads / self.config.rollout_tensor)
        return 2 * heads * self.shape.head_dim * self.itemsize * self.shape.layers / self.config.rollout.pipeline

    @property
    def least_cache(self) -> int:
        """Tokens of KV cache without which vLLM does not start: the longest sequence in whole blocks, and a block that
        it keeps to itself."""
        return _up(self.longest + 1, BLOCK) + BLOCK

    @property
    def cramped(self) -> str:
        """Why the KV cache is too small to begin with, or ""."""
        cache, tokens = self.config.rollout.kv_cache_gib, self.longest + 1
        holds, least = cache * 2**30 / self.kv_bytes_per_token, self.least_cache * self.kv_bytes_per_token / 2**30
        if cache >= least:
            return ""
        unit = 10.0 ** (math.floor(math.log10(least)) - 1)
        return (f"rollout.kv_cache_gib = {cache:g}: holds {holds:,.0f} tokens, and the longest sequence has {tokens:,} "
                "(data.max_prompt_tokens + rollout.max_response_tokens), for which vLLM needs "
                f"{math.ceil(least / unit) * unit:g}")


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
