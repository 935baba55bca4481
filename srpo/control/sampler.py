"""What a sampler decides: which prompts have nothing more to teach, and what a step does about groups that don't.

One rule a file; `resample.sampler` chooses. The base class is the rule of plain GRPO: every prompt, every epoch. A
sampler knows no ledger and no epoch, so that a simulation asks the same object as a run.
"""

from __future__ import annotations

from srpo.control.ledger import Outcome


class Sampler:
    """`away`: for how many epochs a dropped prompt stays away; None: for good."""

    away: int | None = None

    def drop(self, outcome: Outcome) -> str | None:
        """Why a prompt leaves after this epoch, readably, or None: it stays."""
        return None
