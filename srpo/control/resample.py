"""Who takes part in an epoch: the sampler's rule is asked about every prompt that the epoch before showed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from srpo.config import Resample
from srpo.control.difficulty import DifficultyFilter
from srpo.control.dynamic import DynamicSampling
from srpo.control.history import HistoryResampling
from srpo.control.ledger import Decision, Ledger
from srpo.control.no_positive import NoPositiveResampling
from srpo.control.sampler import Sampler


def sampler(config: Resample) -> Sampler:
    """The one that `resample.sampler` names."""
    match config.sampler:
        case "plain":
            return Sampler()
        case "history":
            return HistoryResampling(config.drop_at or 1.0, config.epochs)
        case "no_positive":
            return NoPositiveResampling(config.drop_at or 0.9)
        case "dynamic":
            return DynamicSampling(config.max_rounds)
        case "difficulty":
            return DifficultyFilter(config.low, config.high, config.epochs)


class Resampling:
    """What it keeps is in the ledger's decisions, and is rebuilt from them."""

    def __init__(self, sampler: Sampler, ledger: Ledger):
        self._sampler, self._ledger = sampler, ledger
        self._returns: dict[str, float] = {}
        """Dropped prompts -> the first epoch that each takes part in again."""

    def close_epoch(self, epoch: int, stage: str, prompts: Iterable[str]) -> dict[str, int]:
        """Decide about the prompts that an epoch showed, and those of `prompts` that come back with the next one; how
        many were kept, dropped and returned."""
        return self._ledger.close_epoch(epoch, stage, self._decisions(epoch, prompts))

    def restore(self) -> None:
        self._returns = {prompt: _epoch(until) for prompt, until in self._ledger.dropped()}

    def present(self, prompts: Iterable[str], epoch: int) -> list[str]:
        """Those of the prompts that take part in an epoch, order kept."""
        return [p for p in prompts if self._returns.get(p, 0) <= epoch]

    def _decisions(self, epoch: int, prompts: Iterable[str]) -> Iterator[Decision]:
        away = self._sampler.away
        until = None if away is None else epoch + 1 + away
        for outcome in self._ledger.outcomes(epoch):
            if reason := self._sampler.drop(outcome):
                self._returns[outcome.prompt_id] = _epoch(until)
                yield Decision(outcome.prompt_id, "dropped", reason, until)
            else:
                yield Decision(outcome.prompt_id, "kept", f"{outcome.correct} of {outcome.samples} correct")
        for prompt in prompts:
            if self._returns.get(prompt) == epoch + 1:
                yield Decision(prompt, "returned", f"away for {away} epochs")


def _epoch(until: int | None) -> float:
    return math.inf if until is None else until
