"""The steps of one epoch, as the controller makes them: rounds of rollouts until the sampler has enough, then the
groups that it trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from srpo.control.sampler import Sampler

Groups = npt.NDArray[np.int64]
_STEPS = 100
"""Steps that stand for all of an epoch in `efficiency`."""


def steps(sampler: Sampler, prompts: int, batch: int, samples: int,
          roll_out: Callable[[int, int], Groups]) -> Iterator[tuple[Groups, list[int]]]:
    """Of each step of an epoch of `prompts` prompts: the correct responses of each group, and the indices of those that
    its update uses. `roll_out(start, stop)` answers for those prompts of the epoch's order, as int64 [stop - start]."""
    cursor = 0
    while cursor < prompts:
        begin, more, rounds, mixed = cursor, batch, 0, 0
        parts = []
        while more := min(more, prompts - cursor):
            part = roll_out(cursor, cursor + more)
            cursor, rounds = cursor + more, rounds + 1
            mixed += int(np.count_nonzero((part > 0) & (part < samples)))
            parts.append(part)
            more = sampler.refill(batch, cursor - begin, mixed, rounds)
        correct = np.concatenate(parts)
        yield correct, sampler.trained(((correct > 0) & (correct < samples)).tolist(), batch)


def efficiency(sampler: Sampler, prompts: int, batch: int, informative: float) -> tuple[float, float]:
    """(steps, share of the informative groups that updates use) of an epoch in which that share of the groups is
    informative: of its first steps, scaled up."""
    if not prompts:
        return 0.0, 1.0
    rng = np.random.default_rng(0)
    taken = mixed = used = count = 0
    for correct, trained in steps(sampler, prompts, batch, 2, lambda a, b: (rng.random(b - a) < informative) * 1):
        taken, mixed, count = taken + len(correct), mixed + int(correct.sum()), count + 1
        used += int(correct[trained].sum())
        if count == _STEPS:
            break
    return count * prompts / taken, used / mixed if mixed else 1.0
