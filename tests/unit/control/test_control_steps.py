"""Steps of an epoch whose outcomes are known, by hand and against a curriculum's."""

import pytest

from srpo.config import Resample, Stage
from srpo.control import Curriculum, Ledger, RolloutRow
from srpo.control.resample import sampler
from srpo.control.steps import steps


def made(name: str, outcomes: str, batch: int, **settings: int):
    """`+`: the responses of a group differ."""
    rule = sampler(Resample.model_validate({"sampler": name, **settings}))
    asked: list[int] = []

    def roll_out(places: range) -> list[bool]:
        asked.extend(places)
        return [outcomes[i] == "+" for i in places]

    found = list(steps(rule, len(outcomes), batch, roll_out))
    assert asked == list(range(len(outcomes)))  # every prompt once, in order
    return found


def test_without_refilling_a_step_is_one_round_of_a_batch():
    found = made("history", "-+-+-+-+-+", 4)
    assert [step.rounds for step in found] == [[range(0, 4)], [range(4, 8)], [range(8, 10)]]
    assert [step.trained for step in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_dynamic_sampling_goes_on_until_a_batch_is_mixed():
    # one of two is mixed: two more, both mixed, one too many; then the epoch ends with one mixed group
    first, second = made("dynamic", "-+++--+", 2)
    assert first.rounds == [range(0, 2), range(2, 4)] and first.trained == [1, 2] and first.prompts == range(4)
    assert second.rounds == [range(4, 6), range(6, 7)] and second.trained == [4, 6]


@pytest.mark.parametrize("settings", [dict(sampler="plain"), dict(sampler="dynamic"),
                                      dict(sampler="dynamic", max_rounds=2)])
def test_a_curriculum_makes_the_same_steps(tmp_path, settings):
    config = Resample.model_validate(settings)
    problems = {f"p{i}": "math" for i in range(100)}
    stages = [Stage(name="one", domains=["math"], until="epochs", epochs=1)]
    curriculum = Curriculum(problems, stages, config, 7, 1, Ledger(tmp_path / "ledger.sqlite"))
    order, found = [], []
    while plan := curriculum.next():
        def rows(plan):
            return [RolloutRow(1, plan.step, "one", p, k, "math", float(k * 3 < int(p[1:]) % 7), 0.0, 9, False)
                    for p in plan.prompt_ids for k in range(2)]

        rounds = [len(plan.prompt_ids)]
        while more := curriculum.refill(plan, rows(plan)):
            rounds.append(len(more.prompt_ids) - more.done)
            plan = more
        found.append((rounds, [len(order) + i for i in curriculum.record(plan, rows(plan))]))
        order += plan.prompt_ids
    mixed = [1 <= int(p[1:]) % 7 <= 3 for p in order]  # k = 0 is right and k = 1 is not
    again = steps(sampler(config), len(order), 7, lambda places: [mixed[i] for i in places])
    assert [([len(r) for r in step.rounds], step.trained) for step in again] == found
    assert len(found) == (15 if config.sampler == "plain" else len(found)) > 2
