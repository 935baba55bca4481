"""Dynamic sampling, DAPO's sampler (arXiv 2503.14476): a step goes on sampling until batch.prompts groups are mixed.

Published: groups whose responses are all right or all wrong are filtered out, and more prompts are sampled until the
batch is full. The paper names no cap. verl, whose recipe is the authors', has none by default (max_num_gen_batches: 0)
and 10 rounds in that recipe, each of three times the batch; reaching the cap ends the run there.

Ours: the first round asks for batch.prompts; each further one for as many as the missing groups should need, at the
share of mixed groups so far: fewer would mean another round, each as long as its longest response; more would be thrown
away. A round asks for three times batch.prompts at most, also when nothing has been mixed yet. Where the cap of rounds
or the epoch's end comes first, the step is filled up with its other groups, in their order, as in plain GRPO: their
tokens count in the loss's mean, so that few mixed groups do not make a full-sized update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from srpo.control.sampler import Sampler

_LARGEST = 3
"""Prompts of a round, as a multiple of the step's."""


class DynamicSampling(Sampler):
    """`max_rounds`: rounds of generation in a step."""

    def __init__(self, max_rounds: int):
        self._max_rounds = max_rounds

    def refill(self, prompts: int, asked: int, mixed: int, rounds: int) -> int:
        missing = prompts - mixed
        if missing <= 0 or rounds >= self._max_rounds:
            return 0
        return min(math.ceil(missing * asked / max(mixed, 1)), _LARGEST * prompts)

    def trained(self, mixed: Sequence[bool], prompts: int) -> list[int]:
        return sorted(sorted(range(len(mixed)), key=lambda i: not mixed[i])[:prompts])
