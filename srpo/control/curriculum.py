"""Stage -> epoch -> the prompts of one step.

An epoch is one pass over the prompts of the stage's domains that resampling has left, in an order that depends on
the seed and the epoch's number alone; its last step is short rather than dropped or padded. A stage that ends in the
middle of an epoch closes it, resampling the prompts that it did see. Every decision is written to the ledger.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from srpo.config import Resample, Stage
from srpo.control.ledger import START, Ledger, RolloutRow
from srpo.control.resample import HistoryResampling
from srpo.control.stages import ended
from srpo.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepPlan:
    """The prompts of one step. `step` and `epoch` count from 1 over the whole run; `stage` is the stage's name."""

    step: int
    epoch: int
    stage: str
    prompt_ids: list[str]


class Curriculum:
    """`problems` maps a prompt's id to its domain, in the data's order.

    Raises UserError when a stage has no problem in the data or two stages share a name. A new object begins a run;
    to resume (or to begin over an old ledger) call `load_state_dict`.
    """

    def __init__(self, problems: Mapping[str, str], stages: Sequence[Stage], resample: Resample, prompts_per_step: int,
                 seed: int, ledger: Ledger):
        _check(problems, stages)
        self._problems, self._stages, self._prompts_per_step = problems, stages, prompts_per_step
        self._seed, self._ledger = seed, ledger
        self._resampling = HistoryResampling(resample, ledger)
        self._step = self._epoch = self._stage = self._cursor = 0
        self._order: list[str] | None = None
        """Prompts of the open epoch; None between epochs."""
        self._rewards: list[float] = []
        self._epochs_closed = 0

    def next(self) -> StepPlan | None:
        """The next step's prompts, or None when the last stage has ended. Until `record`, the same again."""
        while self._stage < len(self._stages):
            stage = self._stages[self._stage]
            why = ended(stage, self._rewards, self._epochs_closed)
            if self._order is not None and (why or self._cursor >= len(self._order)):
                self._close_epoch()
                why = ended(stage, self._rewards, self._epochs_closed)
            if why is None and self._order is None and not self._open_epoch():
                why = f"no {' or '.join(stage.domains)} prompt is left after resampling"
                self._event("emptied", f"stage {stage.name}: {why}")
            if why is not None:
                self._end_stage(why)
                continue
            assert self._order is not None
            batch = self._order[self._cursor:self._cursor + self._prompts_per_step]
            return StepPlan(self._step + 1, self._epoch, stage.name, batch)
        return None

    def record(self, plan: StepPlan, rows: Sequence[RolloutRow]) -> None:
        """Commit a step's rollouts; call it before the optimizer step. Raises ValueError for rows of another plan."""
        labels = {(r.epoch, r.step, r.stage) for r in rows}
        if labels != {(plan.epoch, plan.step, plan.stage)} or {r.prompt_id for r in rows} != set(plan.prompt_ids):
            raise ValueError(f"the rows recorded for step {plan.step} are not those of its plan")
        self._ledger.append(rows)
        self._rewards.append(fmean(r.reward for r in rows))
        self._step = plan.step
        self._cursor += len(plan.prompt_ids)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; JSON-able and small, the rest being derived from the ledger."""
        return {"step": self._step, "epoch": self._epoch, "stage": self._stage, "open": self._order is not None,
                "cursor": self._cursor, "data": self._fingerprint(), "ledger": self._ledger.position()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go back to a saved state, rolling the ledger back to it; None: to the beginning of the run.

        Raises UserError when the data or the seed are not those that the state was saved with.
        """
        state = state or {"step": 0, "epoch": 0, "stage": 0, "open": False, "cursor": 0, "data": self._fingerprint(),
                          "ledger": START}
        if state["data"] != self._fingerprint():
            raise UserError("data.train or seed differ from those that this run began with; restore them, or choose "
                            "another run folder")
        self._ledger.rollback(state["ledger"])
        self._step, self._epoch, self._stage, self._cursor = (state[k] for k in ("step", "epoch", "stage", "cursor"))
        self._resampling.restore(self._epoch - state["open"])
        self._order = self._shuffled(self._epoch) if state["open"] else None
        self._begin_stage()
        self._reopen()

    # -- transitions ------------------------------------------------------------------------------------------------

    def _open_epoch(self) -> bool:
        """Begin the next epoch, unless no prompt would take part in it."""
        self._epoch += 1
        self._cursor = 0
        self._order = self._shuffled(self._epoch)
        if not self._order:
            self._epoch -= 1
            self._order = None
        return self._order is not None

    def _close_epoch(self) -> None:
        assert self._order is not None
        stage, seen = self._stages[self._stage], self._order[:self._cursor]
        dropped = self._resampling.close_epoch(self._epoch)
        back = self._resampling.returning(self._problems, self._epoch + 1)
        self._ledger.close_epoch(self._epoch, stage.name, prompts=len(seen), dropped=len(dropped))
        self._event("resample", f"epoch {self._epoch}: {len(seen)} of {len(self._order)} prompts seen, "
                                f"{len(dropped)} mastered and dropped, {back} return")
        self._order = None
        self._epochs_closed += 1

    def _end_stage(self, why: str) -> None:
        following = self._stages[self._stage + 1].name if self._stage + 1 < len(self._stages) else "end of the run"
        self._event("stage", f"{self._stages[self._stage].name} -> {following}: {why}")
        self._stage += 1
        self._begin_stage()

    def _begin_stage(self) -> None:
        """Take up what the ledger holds of the current stage: nothing, unless resuming."""
        name = self._stages[self._stage].name if self._stage < len(self._stages) else ""
        self._rewards = self._ledger.step_rewards(name)
        self._epochs_closed = self._ledger.epochs_closed(name)

    def _reopen(self) -> None:
        """Go on with the last stage of a finished run if it has been made longer since, and has prompts left."""
        if self._stage < len(self._stages):
            return
        self._stage = len(self._stages) - 1
        self._begin_stage()
        if ended(self._stages[-1], self._rewards, self._epochs_closed) or not self._shuffled(self._epoch + 1):
            self._stage += 1
            self._begin_stage()

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _shuffled(self, epoch: int) -> list[str]:
        domains = self._stages[self._stage].domains
        order = self._resampling.present((p for p, domain in self._problems.items() if domain in domains), epoch)
        random.Random(f"{self._seed} {epoch}").shuffle(order)
        return order

    def _event(self, kind: str, detail: str) -> None:
        self._ledger.event(self._step, kind, detail)
        log.info("step %d: %s: %s", self._step, kind, detail)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self._seed).encode())
        for prompt, domain in self._problems.items():
            digest.update(f"{prompt!r} {domain}\n".encode())
        return digest.hexdigest()[:16]


def _check(problems: Mapping[str, str], stages: Sequence[Stage]) -> None:
    names = [s.name for s in stages]
    have = set(problems.values())
    for i, stage in enumerate(stages):
        if stage.name in names[:i]:
            raise UserError(f"stages.{i}.name = {stage.name!r}: used before; the ledger needs distinct names")
        if not have & set(stage.domains):
            raise UserError(f"stages.{i}.domains = {stage.domains} (stage {stage.name!r}): data.train has no such "
                            f"problem, only {', '.join(sorted(have)) or 'none'}")
