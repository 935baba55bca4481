"""How far a run is in its curriculum, and the request to end its current stage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import fmean

from rich.console import Console

from srpo import folder
from srpo.config import Stage, load
from srpo.control.by_hand import ask, pending
from srpo.control.ledger import StepReward, connect, step_rewards
from srpo.control.stages import ending, growth, same_prompts, trend
from srpo.errors import UserError
from srpo.terminal import new_table


@dataclass(frozen=True)
class Progress:
    """One stage. `why`: the reason of its end, None while it has not ended."""

    stage: Stage
    rewards: list[StepReward]
    epochs: int
    why: str | None


def show(run: Path, console: Console) -> None:
    """Print a line a stage."""
    stages, step, running = _progress(run)
    current = _current(stages)
    state = "running" if running else "finished" if current is None else "not running"
    console.print(f"{run}: {state}; {step} steps" + ("" if running else " saved"))
    table = new_table(None, "stage", "domains", "steps", "epochs", "mean reward", "", text=("stage", "domains", ""))
    for i, p in enumerate(stages):
        recent = p.rewards[-p.stage.window:]
        state = f"ended: {p.why}" if p.why else _so_far(p) if i == current else "to come"
        table.add_row(p.stage.name, " ".join(p.stage.domains), str(len(p.rewards)), str(p.epochs),
                      f"{fmean(r.reward for r in recent):.3f}" if recent else "", state)
    console.print(table)
    if request := pending(run):
        console.print(f"asked to end stage {request.stage} at {request.asked}: not taken up yet")


def end_stage(run: Path) -> str:
    """Ask for the end of the current stage; returns what will happen, in words. Raises UserError where there is no
    stage to end."""
    stages, step, running = _progress(run)
    current = _current(stages)
    if current is None:
        last = stages[-1]
        longer = "remove the last line of its stages.jsonl" if str(last.why).startswith("by hand") else (
            "make the last one longer")
        raise UserError(f"{run}: its last stage, {last.stage.name!r}, has ended: {last.why}. To go on, add a stage to "
                        f"its configuration, or {longer}, and start it again")
    name = stages[current].stage.name
    if request := pending(run):
        raise UserError(f"{run}: was asked to end stage {request.stage!r} at {request.asked} and has not taken that up "
                        "yet; it does between two steps")
    ask(run, name)
    what = f"then stage {stages[current + 1].stage.name!r} begins" if current + 1 < len(stages) else (
        "it is the last one: the run then ends with its evaluation and the exported model")
    if running:
        return f"{run}: stage {name!r} ends after the step that it is making; {what}"
    return f"{run}: is not running; stage {name!r} ends when it is started again, after step {step}; {what}"


def _progress(run: Path) -> tuple[list[Progress], int, bool]:
    """The stages, the step up to which they are told, and whether the run is running: if not, it will go on from its
    latest checkpoint, and later steps do not count."""
    stages = load(folder.config_file(run)).stages
    with closing(connect(run)) as db:
        step, = db.execute("SELECT COALESCE(MAX(step), 0) FROM steps").fetchone()
        running = folder.in_use(run)
        if not running:
            step = min(step, _saved(run))
        ends = db.execute("SELECT step, detail FROM events WHERE kind = 'stage' AND step <= ? ORDER BY rowid",
                          (step,)).fetchall()
        found = []
        for stage, following in zip_longest(stages, stages[1:]):
            rewards = step_rewards(db, stage.name, step)
            epochs, = db.execute("SELECT COUNT(*) FROM epochs e WHERE stage = ? AND "
                                 "(SELECT MAX(step) FROM steps s WHERE s.epoch = e.epoch) <= ?",
                                 (stage.name, step)).fetchone()
            last, = db.execute("SELECT COALESCE(MAX(step), 0) FROM steps WHERE stage = ? AND step <= ?",
                               (stage.name, step)).fetchone()
            found.append(Progress(stage, rewards, epochs, _why(stage, following, ends, last)))
    return found, step, running


def _why(stage: Stage, following: Stage | None, ends: Sequence[tuple[int, str]], last: int) -> str | None:
    """The reason in the latest event that ended a stage, unless the stage, of a finished run that was made longer, has
    gone on since. A stage that follows may have been added since, too."""
    beginnings = {ending(stage.name, then, "") for then in (following.name if following else None, None)}
    told = [detail.removeprefix(start) for step, detail in ends for start in beginnings
            if step >= last and detail.startswith(start)]
    return told[-1] if told else None


def _current(stages: Sequence[Progress]) -> int | None:
    """The first stage after the last that ended; None when all have."""
    following = 1 + max((i for i, p in enumerate(stages) if p.why), default=-1)
    return following if following < len(stages) else None


def _saved(run: Path) -> int:
    """The step of the latest checkpoint; a run without one begins again."""
    latest = run / "checkpoints" / "latest"
    return int(latest.read_text().strip().removeprefix("step-")) if latest.is_file() else 0


def _so_far(p: Progress) -> str:
    """What the current stage lacks to its end."""
    stage, steps = p.stage, len(p.rewards)
    most = f" ({stage.max_steps} steps at most)" if stage.max_steps else ""
    if stage.until == "steps":
        return f"until {stage.steps} steps{most}"
    if stage.until == "epochs":
        return f"until {stage.epochs} epochs{most}"
    if steps < max(stage.window, stage.min_steps):
        return f"until plateau, not before {max(stage.window, stage.min_steps)} steps{most}"
    if (same := same_prompts(p.rewards)) < stage.cooldown:
        return f"until plateau, not before {stage.cooldown} steps with the same prompts, of which it has {same}{most}"
    found = trend(p.rewards[-stage.window:])
    told = growth(stage, found) if found else "too few of the latest steps share their prompts to know the trend"
    return f"until plateau, less than {stage.min_gain:+.4f}{most}: {told}"
