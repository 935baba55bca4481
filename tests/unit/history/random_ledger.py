"""A small random ledger, made by a curriculum, and its rollouts as they were given to it."""

import random

from srpo.config import Resample, Stage
from srpo.control import Curriculum, Ledger, RolloutRow

EPOCHS = 5


def write(folder, rng: random.Random) -> list[RolloutRow]:
    problems = {f"p-{i:02d}": rng.choice(["math", "code"]) for i in range(40)}
    skill = {p: rng.choice([0.0, 0.0, 0.3, 0.7, 0.95, 1.0]) for p in problems}
    ledger = Ledger(folder / "ledger.sqlite")
    stages = [Stage(name="maths", domains=["math"], until="epochs", epochs=2),
              Stage(name="both", domains=["math", "code"], until="epochs", epochs=EPOCHS - 2)]
    curriculum = Curriculum(problems, stages, Resample(epochs=2), 8, 0, ledger)
    everything = []
    while plan := curriculum.next():
        rows = []
        for prompt in plan.prompt_ids:
            for sample in range(4):
                correct = 1.0 if rng.random() < skill[prompt] else rng.choice([0.0, 0.0, 0.5])
                rows.append(RolloutRow(plan.epoch, plan.step, plan.stage, prompt, sample, problems[prompt], correct,
                                       correct - rng.choice([0.0, 0.25]), rng.randrange(1, 99), rng.random() < 0.1))
        curriculum.record(plan, rows)
        everything += rows
    ledger.close()
    return everything
