"""The strategies of docs/curriculum.md, each by its configuration alone: which domains a run trains on, and when."""

import re
from itertools import groupby
from pathlib import Path

import pytest
import yaml

from srpo import config
from srpo.check import _check_stages
from srpo.config import Resample, Stage
from srpo.control import Curriculum, Ledger, RolloutRow

DOCUMENT = (Path(config.__file__).parents[1] / "docs" / "curriculum.md").read_text()
STRATEGIES = {body.split()[1].strip(".:"): body
              for body in re.findall(r"^```yaml\n(# .*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)}
PROBLEMS = {f"m{i}": "math" for i in range(400)} | {f"c{i}": "code" for i in range(200)}


def stages(strategy: str) -> list[Stage]:
    """Those of the document, a tenth as long."""
    found = [Stage.model_validate(s) for s in yaml.safe_load(STRATEGIES[strategy])["stages"]]
    _check_stages(found)
    return [s.model_copy(update={"steps": s.steps and s.steps // 10, "max_steps": s.max_steps and s.max_steps // 10})
            for s in found]


def run(path: Path, strategy: str, growth: float = 0.0) -> list[tuple[frozenset[str], int]]:
    """(domains seen, steps) of the run's stages; the reward grows by so much a step."""
    ledger = Ledger(path / "ledger.sqlite")
    ledger._db.execute("PRAGMA synchronous = OFF")
    curriculum = Curriculum(PROBLEMS, stages(strategy), Resample(), 20, 1, ledger)
    seen: list[tuple[str, set[str]]] = []
    while plan := curriculum.next():
        curriculum.record(plan, [RolloutRow(plan.epoch, plan.step, plan.stage, p, k, PROBLEMS[p], 0.0,
                                            plan.step * growth, 9, False) for p in plan.prompt_ids for k in range(2)])
        seen.append((plan.stage, {PROBLEMS[p] for p in plan.prompt_ids}))
    parts = [[domains for _, domains in group] for _, group in groupby(seen, key=lambda s: s[0])]
    return [(frozenset().union(*domains), len(domains)) for domains in parts]


@pytest.mark.parametrize(("strategy", "growth", "trained"), [
    ("staged", 0.0, [({"math"}, 50), ({"math", "code"}, 50)]),      # plateau: after the first window
    ("staged", 0.001, [({"math"}, 100), ({"math", "code"}, 50)]),   # growing: until max_steps
    ("mixed", 0.0, [({"math", "code"}, 150)]),
    ("maths", 0.0, [({"math"}, 150)]),
    ("code", 0.0, [({"code"}, 150)]),
])
def test_a_strategy_is_its_configuration(tmp_path, strategy, growth, trained):
    assert run(tmp_path, strategy, growth) == trained


def test_the_document_has_each_strategy_and_the_true_defaults():
    assert set(STRATEGIES) == {"staged", "mixed", "maths", "code"}
    for name in ("window", "min_gain", "min_steps", "cooldown"):
        default = Stage.model_fields[name].default
        assert re.search(rf"^\| `{name}` \| {re.escape(str(default))} \|", DOCUMENT, re.MULTILINE), name
