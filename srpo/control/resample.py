"""History resampling: after every epoch, prompts that the policy has mastered leave the data set.

From the SRPO report: prompts whose rollouts were all correct have no more to teach about being right and are dropped;
mixed and all-wrong ones stay. `drop_at` below 1 is ScaleRL's rule; a stay-away of some epochs instead of for good is
ours. "Correct" is a rollout's accuracy, never its reward, which also holds format and length terms: a dropped group's
advantages need not have been zero.
"""

from __future__ import annotations

from collections.abc import Iterable

from srpo.config import Resample
from srpo.control.ledger import Ledger


class HistoryResampling:
    """Who takes part in an epoch. The settings and the ledger's closed epochs determine all that it keeps."""

    def __init__(self, config: Resample, ledger: Ledger):
        self._config, self._ledger = config, ledger
        self._returns: dict[str, float] = {}
        """Prompt id -> the first epoch that it takes part in again."""

    def close_epoch(self, epoch: int) -> set[str]:
        """Drop what was mastered in the epoch that just ended; returns the ids dropped."""
        return self._drop(range(epoch, epoch + 1))

    def restore(self, epochs_closed: int) -> None:
        """Rebuild from the ledger's epochs 1 ... epochs_closed."""
        self._returns.clear()
        self._drop(range(1, epochs_closed + 1))

    def present(self, prompt_ids: Iterable[str], epoch: int) -> list[str]:
        """Those of the prompts that take part in an epoch, order kept."""
        return [p for p in prompt_ids if self._returns.get(p, 0) <= epoch]

    def returning(self, prompt_ids: Iterable[str], epoch: int) -> int:
        """How many of the prompts come back with this epoch."""
        return sum(self._returns.get(p) == epoch for p in prompt_ids)

    def _drop(self, epochs: range) -> set[str]:
        if not self._config.enabled:
            return set()
        away = self._config.epochs if self._config.epochs is not None else float("inf")
        dropped = {prompt: epoch + 1 + away for epoch, prompt in self._ledger.solved(epochs, self._config.drop_at)}
        self._returns.update(dropped)
        return set(dropped)
