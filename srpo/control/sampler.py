"""What a sampler decides: which prompts take part, and which groups of responses a step is made of.

One rule a file; `resample.sampler` chooses. The base class is the rule of plain GRPO: every prompt, every epoch, and a
step trains on whatever it rolled out. A sampler knows no ledger, no epoch and no step, and keeps nothing: the same
questions get the same answers, from a run as from a simulation.

Epochs are `exclude` and `drop`: a prompt that leaves for a reason takes part again `away` epochs later. Steps are
`refill` and `trained`, about groups of which some are mixed: their responses differ in correctness.
"""

from __future__ import annotations

from collections.abc import Sequence

from srpo.control.ledger import Outcome


class Sampler:
    """`away`: for how many epochs a prompt that leaves stays away; None: for good."""

    away: int | None = None

    def exclude(self, pass_rate: float) -> str | None:
        """Why a prompt whose pass rate was measured before the run does not begin it, readably, or None: it does. A
        prompt without a measured one always does."""
        return None

    def drop(self, outcome: Outcome) -> str | None:
        """Why a prompt leaves after an epoch that showed this of it, readably, or None: it stays."""
        return None

    def refill(self, prompts: int, asked: int, mixed: int, rounds: int) -> int:
        """How many more prompts a step rolls out in another round, if the epoch has as many; 0: it trains on what it
        has.

        So far `rounds` rounds of generation, the first of batch.prompts = `prompts`, asked `asked` prompts in all, and
        `mixed` of the groups were.
        """
        return 0

    def trained(self, mixed: Sequence[bool], prompts: int) -> list[int]:
        """Which of a step's groups its update uses, in order; `mixed` says of each, in the order of its prompts,
        whether it is. The others are in the ledger all the same."""
        return list(range(len(mixed)))
