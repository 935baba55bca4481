"""docs/rewards.md and its example: what users copy runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from srpo.config import Config, Reward
from srpo.data.schema import read_problems
from srpo.rewards import Graders, Response
from srpo.rewards.compose import judge

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "rewards.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_the_example_judges_the_problems_that_it_writes(tmp_path, monkeypatch):
    file = tmp_path / "words.jsonl"
    file.write_bytes(subprocess.run([sys.executable, DOCS / "examples" / "sort_words.py"], capture_output=True,
                                    check=True).stdout)
    problem, *others = read_problems([file])
    assert len(others) == 999 and problem.domain == "other"
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    right = sorted(problem.extra["words"])
    answers = [right, [right[1], right[0], *right[2:]], right[:4], [*right, "zebra"]]
    reward = Reward.model_validate(yaml.safe_load(blocks("yaml")[0])["reward"] | {"style": "think_answer"})
    graders = Graders(reward, 100, 1)
    found = graders.grade([Response(problem, f"hm</think><answer>{' '.join(words)}</answer>", 9, False)
                           for words in answers])
    graders.close()
    assert [g.correct for g in found] == [1.0, 0.6, 0.0, 0.0]


def test_the_guide_shows_the_example_and_settings_that_load():
    sections = {"run": "r", "model": {"path": "m"}, **yaml.safe_load(blocks("yaml")[0])}
    config = Config.model_validate(sections)
    assert config.stages[0].domains == ["other"]
    module, name = judge(config.reward.custom).function.split(":")
    source = (DOCS / "examples" / f"{module}.py").read_text()
    assert blocks("python")[0].strip() in source and f"def {name}(" in source
    bonus = yaml.safe_load(blocks("yaml")[1])["reward"]
    assert Config.model_validate(sections | {"reward": bonus}).reward.custom[0].role == "bonus"
