"""The steps of an epoch whose outcomes are known or drawn: rounds of generation until the sampler has enough, then the
groups that it trains on. The curriculum asks a run's sampler the same, round by round; a test compares the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from srpo.control.sampler import Sampler


class Step(NamedTuple):
    """Places in the epoch's order: `rounds` of the prompts of each round of generation, `trained` of the groups that
    the update uses."""

    rounds: list[range]
    trained: list[int]

    @property
    def prompts(self) -> range:
        return range(self.rounds[0].start, self.rounds[-1].stop)


def steps(sampler: Sampler, prompts: int, batch: int, roll_out: Callable[[range], Sequence[bool]]) -> Iterator[Step]:
    """The steps of an epoch of `prompts` prompts, `batch` = batch.prompts. `roll_out` says of each prompt of a round
    whether its responses differ in correctness; it is asked in order, when the steps before have been yielded."""
    cursor = 0
    while cursor < prompts:
        rounds: list[range] = []
        mixed: list[bool] = []
        more = batch
        while more := min(more, prompts - cursor):
            rounds.append(range(cursor, cursor + more))
            mixed += roll_out(rounds[-1])
            cursor += more
            more = sampler.refill(batch, len(mixed), sum(mixed), len(rounds))
        yield Step(rounds, [rounds[0].start + i for i in sampler.trained(mixed, batch)])
