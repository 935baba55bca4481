"""When a stage of the curriculum ends.

The SRPO report moves from maths to maths and code when the growth of the reward plateaus, without a number. Ours: the
mean reward of the latest `window` steps exceeds that of the `window` steps before by less than `min_gain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from srpo.config import Stage


def ended(stage: Stage, rewards: Sequence[float], epochs: int) -> str | None:
    """Why a stage is over, readably, or None while it is not.

    `rewards` holds the mean reward of each of the stage's steps, `epochs` how many epochs closed in it.
    """
    steps = len(rewards)
    if stage.max_steps is not None and steps >= stage.max_steps:
        return f"{steps} steps, its max_steps"
    if stage.until == "steps" and steps >= (stage.steps or 0):
        return f"{steps} steps"
    if stage.until == "epochs" and epochs >= (stage.epochs or 0):
        return f"{epochs} epochs"
    if stage.until == "plateau" and steps >= max(2 * stage.window, stage.min_steps):
        earlier, later = fmean(rewards[-2 * stage.window:-stage.window]), fmean(rewards[-stage.window:])
        if later - earlier < stage.min_gain:
            return (f"plateau after {steps} steps: mean reward {later:.4f} over the last {stage.window} steps, "
                    f"{earlier:.4f} over the {stage.window} before")
    return None
