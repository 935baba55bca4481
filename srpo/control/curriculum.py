"""Stage -> epoch -> the prompts of one step.

An epoch is one pass over the prompts of the stage's domains and difficulty that resampling has left, in an order that
depends on the seed and the epoch's number alone; its last step is short rather than dropped or padded. A stage that
ends in the middle of an epoch closes it, resampling the prompts that it did see. Every decision is written to the
ledger.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from srpo.config import Resample, Stage
from srpo.control.by_hand import ByHand
from srpo.control.ledger import START, Ledger, RolloutRow, StepReward
from srpo.control.resample import Resampling, sampler
from srpo.control.stages import ended, ending
from srpo.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepPlan:
    """The prompts of one step. `step` and `epoch` count from 1 over the whole run; `stage` is the stage's name.

    `lengths`: mean response length of each prompt in the latest earlier epoch that had it, None where none did.
    `finish`: how many of the prompts the step rolls out to the end, whichever are complete first; the others are the
    first `begun` ones of the next step. `rounds`: how often the step generates, with dynamic sampling; before the last
    round it was done with the first `done` prompts.
    """

    step: int
    epoch: int
    stage: str
    prompt_ids: list[str]
    lengths: list[float | None]
    finish: int
    begun: int
    done: int = 0
    rounds: int = 1


class Curriculum:
    """`problems` maps a prompt's id to its domain, in the data's order; `difficulty` to how hard it is, `pass_rates` to
    the share of right responses that was measured before the run, where that is known. `texts`: a fingerprint of what
    the problems ask.

    Raises UserError when a stage has no problem in the data. A new object begins a run; to resume (or to begin over an
    old ledger) call `load_state_dict`.
    """

    def __init__(self, problems: Mapping[str, str], stages: Sequence[Stage], resample: Resample, prompts_per_step: int,
                 seed: int, ledger: Ledger, difficulty: Mapping[str, str] | None = None, oversample: float = 1.0,
                 by_hand: ByHand | None = None, pass_rates: Mapping[str, float] | None = None, texts: str = ""):
        self._difficulty, self._pass_rates = difficulty or {}, pass_rates or {}
        _check(problems, self._difficulty, stages)
        self._problems, self._stages, self._prompts_per_step = problems, stages, prompts_per_step
        self._begin_per_step = math.ceil(prompts_per_step * oversample)
        self._resample = resample
        self._seed, self._ledger, self._by_hand, self._texts = seed, ledger, by_hand, texts
        self._sampler = sampler(resample)
        self._resampling = Resampling(self._sampler, ledger)
        self._step = self._epoch = self._stage = self._cursor = 0
        self._order: list[str] | None = None
        """Prompts of the open epoch; None between epochs."""
        self._begun: list[str] = []
        """Those before the cursor that no step has trained on yet."""
        self._rewards: list[StepReward] = []
        self._since = 1
        self._epochs_closed = 0
        self._lengths: dict[str, float] = {}

    def next(self) -> StepPlan | None:
        """The next step's prompts, or None when the last stage has ended. Until `record`, the same again, unless the
        stage is ended by hand meanwhile."""
        while self._stage < len(self._stages):
            stage = self._stages[self._stage]
            why = self._ended()
            if why and self._order is not None and not self._cursor:  # opened before a stop; no step is of it
                self._order, self._epoch = None, self._epoch - 1
            if self._order is not None and (why or self._cursor >= len(self._order) and not self._begun):
                self._close_epoch()
                why = why or self._ended()  # an epoch that was cut short counts, but is not what ended the stage
            if why is None and self._order is None and not self._open_epoch():
                why = f"no {' or '.join(stage.domains)} prompt is left after resampling"
                self._event("emptied", f"stage {stage.name}: {why}")
            if why is not None:
                self._end_stage(why)
                continue
            assert self._order is not None
            room = max(0, self._begin_per_step - len(self._begun))
            batch = self._begun + self._order[self._cursor:self._cursor + room]
            return StepPlan(self._step + 1, self._epoch, stage.name, batch, [self._lengths.get(p) for p in batch],
                            min(self._prompts_per_step, len(batch)), len(self._begun))
        if self._by_hand:
            self._by_hand.ends(None, self._step)  # takes away a request that came too late
        return None

    def refill(self, plan: StepPlan, rows: Sequence[RolloutRow]) -> StepPlan | None:
        """The same step with another round, where the sampler, which sees the step's rows so far, wants one and the
        epoch has prompts for it. They are taken by `record`."""
        assert self._order is not None
        prompts = self._sampler.refill(self._prompts_per_step, len(plan.prompt_ids), len(_mixed(rows)), plan.rounds)
        taken = self._cursor + len(plan.prompt_ids) - plan.begun
        more = self._order[taken:taken + prompts]
        if not more:
            return None
        batch = plan.prompt_ids + more
        return replace(plan, prompt_ids=batch, lengths=plan.lengths + [self._lengths.get(p) for p in more],
                       finish=len(batch), done=len(plan.prompt_ids), rounds=plan.rounds + 1)

    def record(self, plan: StepPlan, rows: Sequence[RolloutRow]) -> list[int]:
        """Commit all rollouts of a step, before its update. Returns which of the groups the update uses, counted in the
        order of the plan's prompts without those that are not complete. Raises ValueError for rows of another plan."""
        labels, done = {(r.epoch, r.step, r.stage) for r in rows}, {r.prompt_id for r in rows}
        if labels != {(plan.epoch, plan.step, plan.stage)} or not (
                done <= set(plan.prompt_ids) and len(done) == plan.finish):
            raise ValueError(f"the rows recorded for step {plan.step} are not those of its plan")
        rolled, mixed = [p for p in plan.prompt_ids if p in done], _mixed(rows)
        trained = self._sampler.trained([p in mixed for p in rolled], self._prompts_per_step)
        self._ledger.append(rows, done - {rolled[i] for i in trained})
        self._rewards.append(StepReward(fmean(r.reward for r in rows), len(rows), self._since))
        self._step = plan.step
        self._cursor += len(plan.prompt_ids) - len(self._begun)
        self._begun = [p for p in plan.prompt_ids if p not in done]
        if self._sampler.refill(self._prompts_per_step, len(rolled), len(mixed), rounds=0):  # but for the cap
            end = "the epoch has no more prompts" if self._cursor >= len(self._order or ()) else "resample.max_rounds"
            self._event("refill", f"{len(mixed)} of {len(rolled)} groups mixed after {plan.rounds} rounds ({end}): the "
                                  f"step trains on {len(trained)} groups")
        return trained

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; JSON-able and small, the rest being derived from the ledger."""
        begun = [[stage.name, _takes(stage)] for stage in self._stages[:self._stage + 1]]
        return {"step": self._step, "epoch": self._epoch, "stages": begun, "over": self._stage == len(self._stages),
                "open": self._order is not None, "cursor": self._cursor, "begun": self._begun,
                "resample": self._resample.model_dump(), "data": self._fingerprint(), "texts": self._texts,
                "ledger": self._ledger.position()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go back to a saved state, rolling the ledger back to it; None: to the beginning of the run.

        How long stages are, and which ones follow those that have begun, may have changed since: a finished run goes on
        with its last stage if that is longer now and has prompts left. Raises UserError naming what may not have
        changed: the data, the seed, resampling, the stages that have begun.
        """
        if state:
            self._check_unchanged(state)
        else:
            state = {"step": 0, "epoch": 0, "stages": [], "over": False, "open": False, "cursor": 0, "ledger": START}
        self._ledger.rollback(state["ledger"])
        self._step, self._epoch, self._cursor = state["step"], state["epoch"], state["cursor"]
        self._begun = state.get("begun", [])  # older checkpoints have none
        self._stage = max(len(state["stages"]) - 1, 0)
        self._resampling.restore()
        self._lengths = dict(self._ledger.mean_lengths(range(1, self._epoch - state["open"] + 1)))
        self._order = self._shuffled(self._epoch) if state["open"] else None
        self._begin_stage()
        if state["over"] and (self._ended() or not self._shuffled(self._epoch + 1)):
            self._stage += 1
            self._begin_stage()

    # -- transitions ------------------------------------------------------------------------------------------------

    def _open_epoch(self) -> bool:
        """Begin the next epoch, unless no prompt would take part in it."""
        if not self._epoch and (left_out := self._resampling.begin(self._pass_rates)):
            self._event("resample", f"epoch 1: {left_out} of {len(self._problems)} prompts are left out for their "
                                    "measured pass rate")
        self._epoch += 1
        self._cursor = 0
        self._order = self._shuffled(self._epoch)
        if not self._order:
            self._epoch -= 1
            self._order = None
        return self._order is not None

    def _close_epoch(self) -> None:
        assert self._order is not None
        stage = self._stages[self._stage]
        self._begun = []  # a stage that ends drops what it has begun
        counts = self._resampling.close_epoch(self._epoch, stage.name, self._problems)
        self._lengths.update(self._ledger.mean_lengths(range(self._epoch, self._epoch + 1)))
        seen = counts["kept"] + counts["dropped"]
        self._event("resample", f"epoch {self._epoch}: {seen} of {len(self._order)} prompts seen, "
                                f"{counts['dropped']} dropped, {counts['returned']} return")
        left = len(self._order) - counts["dropped"] + counts["returned"]  # a stage may end before all are seen
        if 0 < left < self._prompts_per_step <= len(self._order):
            self._event("few", f"{left} prompts are left, fewer than a step has ({self._prompts_per_step}): the policy "
                               "will learn them by heart, and forget. End the stage before that, or have prompts come "
                               "back (resample.epochs)")
        self._order = None
        self._epochs_closed += 1
        if counts["dropped"] or counts["returned"]:
            self._since = self._epoch + 1

    def _end_stage(self, why: str) -> None:
        following = self._stages[self._stage + 1].name if self._stage + 1 < len(self._stages) else None
        self._event("stage", ending(self._stages[self._stage].name, following, why))
        self._stage += 1
        self._begin_stage()

    def _begin_stage(self) -> None:
        """Take up what the ledger holds of the current stage: nothing, unless resuming."""
        name = self._stages[self._stage].name if self._stage < len(self._stages) else ""
        self._rewards = self._ledger.step_rewards(name)
        self._epochs_closed = self._ledger.epochs_closed(name)
        self._since = self._ledger.same_prompts_since(self._epoch + (self._order is None))

    def _ended(self) -> str | None:
        stage = self._stages[self._stage]
        why = ended(stage, self._rewards, self._epochs_closed)
        if why is None and self._by_hand and self._by_hand.ends(stage.name, self._step):
            why = f"by hand after {len(self._rewards)} steps"
        return why

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _check_unchanged(self, state: dict[str, Any]) -> None:
        way_out = "restore it, or choose another run folder"
        if state["data"] != self._fingerprint():
            raise UserError("data.train or seed (or data.max_prompt_tokens, with data.overlong: drop): not what this "
                            f"run began with; {way_out}")
        if state.get("texts", self._texts) != self._texts:  # older checkpoints have none
            raise UserError("data.train: asks other questions under the ids of those that this run began with; "
                            f"{way_out}")
        for key, began in state["resample"].items():
            if (now := getattr(self._resample, key)) != began:
                raise UserError(f"resample.{key} = {now}: this run began with {began}; {way_out}")
        for i, (name, taken) in enumerate(state["stages"]):
            if i == len(self._stages):
                raise UserError(f"stages: stage {name!r}, which this run has begun, is missing; {way_out}")
            stage = self._stages[i]
            if stage.name != name:
                raise UserError(f"stages.{i}.name = {stage.name!r}: this run has begun {name!r} there; {way_out}. Only "
                                "stages that have not begun can be added or changed")
            if _takes(stage) != taken:
                raise UserError(f"stages.{i}: takes {', '.join(_takes(stage))} problems; this run began stage {name!r} "
                                f"with {', '.join(taken)}; {way_out}")

    def _shuffled(self, epoch: int) -> list[str]:
        stage = self._stages[self._stage]
        order = self._resampling.present((p for p, domain in self._problems.items()
                                          if _suits(stage, domain, self._difficulty.get(p))), epoch)
        random.Random(f"{self._seed} {epoch}").shuffle(order)
        return order

    def _event(self, kind: str, detail: str) -> None:
        self._ledger.event(self._step, kind, detail)
        log.info("step %d: %s: %s", self._step, kind, detail)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self._seed).encode())
        for prompt, domain in self._problems.items():
            digest.update(f"{prompt!r} {domain}{self._difficulty.get(prompt, '')}\n".encode())
        return digest.hexdigest()[:16]


def _suits(stage: Stage, domain: str, difficulty: str | None) -> bool:
    return domain in stage.domains and (stage.difficulty is None or difficulty in stage.difficulty)


def _mixed(rows: Sequence[RolloutRow]) -> set[str]:
    """Prompts whose responses differ in correctness."""
    correct: dict[str, set[float]] = {}
    for row in rows:
        correct.setdefault(row.prompt_id, set()).add(row.correct)
    return {prompt for prompt, values in correct.items() if len(values) > 1}


def _takes(stage: Stage) -> list[str]:
    return sorted(stage.domains) + sorted(stage.difficulty or [])


def _check(problems: Mapping[str, str], difficulty: Mapping[str, str], stages: Sequence[Stage]) -> None:
    have = set(problems.values())
    for i, stage in enumerate(stages):
        if not have & set(stage.domains):
            raise UserError(f"stages.{i}.domains = {stage.domains} (stage {stage.name!r}): data.train has no such "
                            f"problem, only {', '.join(sorted(have)) or 'none'}")
        if not any(_suits(stage, domain, difficulty.get(p)) for p, domain in problems.items()):
            raise UserError(f"stages.{i}.difficulty = {stage.difficulty} (stage {stage.name!r}): data.train has no "
                            "such problem; `srpo prepare --model` measures how hard problems are")
