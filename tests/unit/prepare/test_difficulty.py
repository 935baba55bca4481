"""Pass rates from sampled responses, graded by the real graders; the model alone is replaced."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from srpo.data.schema import Problem, read_problems
from srpo.errors import UserError
from srpo.prepare import pipeline
from srpo.prepare.difficulty import Difficulty, Meter

MATH = Problem("m", "math", "What is 1+1?", answer="2")
CODE = Problem("c", "code", "Add.", tests={
    "kind": "function", "entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]})
RIGHT, WRONG = "It is \\boxed{2}.", "It is \\boxed{3}."
PROGRAM = "```python\ndef add(a, b):\n    return a {} b\n```"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch):
    """A model that says what it is told to, problem by problem; `asked` are the prompts that it has got."""
    asked: list[str] = []

    def says(**answers: list[str]) -> list[str]:
        def generate(batches, samples, temperature):
            (problems,) = batches
            asked.extend(p.prompt for p in problems)
            for problem in reversed(problems):  # they finish in any order
                texts = next(a for key, a in answers.items() if key in problem.prompt)[:samples]
                yield {(problem.id, j): SimpleNamespace(text=t, tokens=1, truncated=False) for j, t in enumerate(texts)}

        def start(model, template, max_tokens, *, dtype, stop):
            assert dtype == "float16" and stop == (["</answer>"] if template == "srpo" else [])
            return SimpleNamespace(generate=generate)

        sampler = SimpleNamespace(StandaloneEngine=start)
        monkeypatch.setitem(sys.modules, "srpo.rollout.standalone", sampler)
        return asked

    return says


def test_pass_rates(model):
    model(What=[RIGHT, WRONG, RIGHT, "nothing"], Add=[PROGRAM.format("+"), PROGRAM.format("-"), "", "add"])
    meter = Meter(Difficulty("model", samples=4, dtype="float16"), workers=1)
    try:
        assert meter.pass_rates([MATH, CODE]) == [0.5, 0.25]
    finally:
        meter.close()


def test_with_the_srpo_prompt_an_answer_comes_after_the_thinking(model):
    model(What=[RIGHT, f"hm</think><answer>{RIGHT}</answer>"])
    meter = Meter(Difficulty("model", samples=2, template="srpo", dtype="float16"), workers=1)
    try:
        assert meter.pass_rates([MATH]) == [0.5]
    finally:
        meter.close()


@pytest.mark.parametrize(("rate", "name"), [
    (0.0, "hard"), (0.25, "hard"), (0.375, "medium"), (0.75, "easy"), (1.0, "easy")])
def test_names(rate: float, name: str):
    assert Difficulty("model").name(rate) == name


@pytest.mark.parametrize(("easy", "hard"), [(0.2, 0.3), (0.3, 0.3), (1.5, 0.1), (0.5, -0.1)])
def test_thresholds(easy: float, hard: float):
    with pytest.raises(UserError, match="thresholds easy = .* must be 0 <= hard < easy <= 1"):
        Difficulty("model", easy=easy, hard=hard)


def test_columns_are_written_and_not_measured_twice(model, tmp_path: Path):
    source, folder = tmp_path / "m.jsonl", tmp_path / "model"
    folder.mkdir()
    source.write_text('{"problem": "What is $1+1$?", "answer": "2"}\n{"problem": "Find $7-4$.", "answer": "3"}\n')
    asked = model(What=[RIGHT] * 2, Find=[WRONG, RIGHT])
    difficulty = Difficulty(str(folder), samples=2, dtype="float16")

    def difficulties() -> list[str | None]:
        pipeline.prepare([str(source)], tmp_path / "out", difficulty=difficulty, console=Console(quiet=True))
        return [p.difficulty for p in read_problems([tmp_path / "out/train.parquet"])]

    assert difficulties() == difficulties() == ["easy", "medium"]
    assert len(asked) == 2
    (folder / "model.safetensors").write_bytes(b"trained on")                   # another model of that name
    assert difficulties() == ["easy", "medium"]
    assert len(asked) == 4
