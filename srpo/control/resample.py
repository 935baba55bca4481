"""Who takes part in an epoch: the sampler's rule is asked about every prompt that the epoch before showed, and before
the first epoch about every prompt whose pass rate was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from srpo import config as configuration
from srpo.config import Resample
from srpo.control.difficulty import DifficultyFilter
from srpo.control.dynamic import DynamicSampling
from srpo.control.history import HistoryResampling
from srpo.control.ledger import Decision, Ledger, Outcome, Verdict
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


def recorded(run: Path) -> Resample | None:
    """The settings of a run, from the configuration in its folder; None where there is none. `run` is the folder or the
    ledger in it."""
    file = (run if run.is_dir() else run.parent) / "config.yaml"
    return configuration.load(file).resample if file.is_file() else None


class Resampling:
    """What it keeps is in the ledger's decisions, and is rebuilt from them."""

    def __init__(self, sampler: Sampler, ledger: Ledger):
        self._sampler, self._ledger = sampler, ledger
        self._returns: dict[str, float] = {}
        """Dropped prompts -> the first epoch that each takes part in again."""

    def begin(self, pass_rates: Mapping[str, float]) -> int:
        """Decide, before the first epoch, which prompts do not begin the run; how many. Those already decided about
        (by an earlier call, also of a run that was killed) are left as they are."""
        return self._ledger.decide(0, self._exclusions(pass_rates))

    def close_epoch(self, epoch: int, stage: str, prompts: Iterable[str]) -> dict[str, int]:
        """Decide about the prompts that an epoch showed, and those of `prompts` that come back with the next one; how
        many were kept, dropped and returned."""
        before = self._ledger.position()["decisions"]
        counts = self._ledger.close_epoch(epoch, stage, self._returned(epoch, prompts), partial(self._judge, epoch))
        self._returns.update((prompt, _epoch(until)) for prompt, until in self._ledger.dropped(before))
        return counts

    def restore(self) -> None:
        self._returns = {prompt: _epoch(until) for prompt, until in self._ledger.dropped()}

    def present(self, prompts: Iterable[str], epoch: int) -> list[str]:
        """Those of the prompts that take part in an epoch, order kept."""
        return [p for p in prompts if self._returns.get(p, 0) <= epoch]

    def _exclusions(self, pass_rates: Mapping[str, float]) -> Iterator[Decision]:
        until = self._until(0)
        for prompt, pass_rate in pass_rates.items():
            if prompt not in self._returns and (reason := self._sampler.exclude(pass_rate)):
                self._returns[prompt] = _epoch(until)
                yield Decision(prompt, "dropped", reason, until)

    def _judge(self, epoch: int, outcome: Outcome) -> Verdict:
        if reason := self._sampler.drop(outcome):
            return Verdict("dropped", reason, self._until(epoch))
        return Verdict("kept", f"{outcome.correct} of {outcome.samples} correct")

    def _returned(self, epoch: int, prompts: Iterable[str]) -> Iterator[Decision]:
        for prompt in prompts:
            if self._returns.get(prompt) == epoch + 1:
                yield Decision(prompt, "returned", f"away for {self._sampler.away} epochs")

    def _until(self, epoch: int) -> int | None:
        """The first epoch in which a prompt that leaves after this one takes part again."""
        return None if self._sampler.away is None else epoch + 1 + self._sampler.away


def _epoch(until: int | None) -> float:
    return math.inf if until is None else until
