"""The toy world: its references pass, its held-out problems are held out; prompts in each template."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from srpo.data import prompts, toy
from srpo.data.prompts import Tokenizer
from srpo.data.schema import Problem, read_problems
from srpo.errors import UserError
from srpo.rewards import code, math


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.write(folder, seed=3)
    return folder


def test_files_are_valid_disjoint_and_reproducible(world: Path, tmp_path: Path):
    train = read_problems([world / "train.jsonl"])
    held_out = read_problems([world / "eval.jsonl"])
    worked = read_problems([world / "worked.jsonl"], need_response=True)
    seen = {p.prompt for p in train} | {p.prompt for p in worked}
    assert not seen & {p.prompt for p in held_out}
    assert {p.domain for p in train} == {p.domain for p in held_out} == {"math", "code"}
    toy.write(tmp_path, seed=3)
    for name in ("train.jsonl", "eval.jsonl", "worked.jsonl", "model/model.safetensors", "model/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (world / name).read_bytes()


def test_careful_solutions_are_right_and_hasty_ones_are_not_always():
    rng = random.Random(0)
    for make, solve in ((toy.all_sums, toy.solve_sum), (toy.all_functions, toy.solve_function)):
        verdicts: dict[bool, list[float]] = {True: [], False: []}
        for problem in rng.sample(make(), 60):
            response = solve(problem, rng)
            careful = not response.startswith("</think>")
            graded = (math.grade(response, problem["answer"]) if "answer" in problem
                      else code.grade(response, problem["tests"]))
            verdicts[careful].append(graded.correct)
        assert set(verdicts[True]) == {1.0} and 0 < sum(verdicts[False]) < len(verdicts[False])


def test_text_survives_the_tokenizer(world: Path):
    tokenizer = Tokenizer(world / "model", "plain")
    worked = read_problems([world / "worked.jsonl"], need_response=True)[::397]
    for problem, tokens in zip(worked, tokenizer.responses(worked), strict=True):
        assert tokenizer.text(tokens) == problem.response and tokens[-1] in tokenizer.stop_ids


def test_templates(world: Path):
    problem = Problem("p", "math", "1+1", answer="2")
    plain = Tokenizer(world / "model", "plain")
    assert plain.decode(plain.prompts([problem])["p"].tolist()) == "1+1"
    recipe = Tokenizer(world / "model", "srpo")
    text = recipe.decode(recipe.prompts([problem])["p"].tolist())
    assert text.endswith("\nUser: 1+1\nAssistant: <think>")
    with pytest.raises(UserError, match=r"template = 'chat': the tokenizer in .* has no chat template"):
        Tokenizer(world / "model", "chat")


def sums(*prompts: str) -> list[Problem]:
    return [Problem(f"p{i}", "math", prompt, answer="1") for i, prompt in enumerate(prompts)]


def test_long_prompts_are_counted_and_the_first_is_named(world: Path):
    tokenizer = Tokenizer(world / "model", "plain", 3)
    why = (r"problem 'p1': prompt has 4 tokens, data.max_prompt_tokens is 3; so it is with 2 of 4 prompts, the longest "
           r"has 5\. Raise it, or leave them out with data.overlong: drop")
    with pytest.raises(UserError, match=why):
        tokenizer.prompts(sums("1+1", "1234", "12345", "123"))


def test_long_prompts_are_left_out(world: Path):
    tokenizer = Tokenizer(world / "model", "plain", 3, "drop")
    made = tokenizer.prompts(sums("1+1", "1234", "12345", "12"))
    assert list(made) == ["p0", "p3"] and "p1" not in made
    assert [tokenizer.decode(tokens.tolist()) for tokens in made.values()] == ["1+1", "12"]
    assert made.dropped == ("2 of 4 prompts are left out (data.overlong: drop): they have more than 3 tokens "
                            "(data.max_prompt_tokens), the longest 5")
    assert tokenizer.prompts(sums("1+1")).dropped == ""
    with pytest.raises(UserError, match="so it is with 2 of 2 prompts"):
        tokenizer.prompts(sums("1234", "12345"))  # none would be left


@pytest.mark.parametrize("count", [0, 1, prompts.CHUNK - 1, prompts.CHUNK, prompts.CHUNK + 1, 2 * prompts.CHUNK])
def test_prompts_are_those_of_the_tokenizer_in_any_number(world: Path, count: int):
    problems = sums(*(f"{i}+1"[i % 3:] for i in range(count)))
    made = Tokenizer(world / "model", "plain").prompts(problems)
    theirs = AutoTokenizer.from_pretrained(world / "model")
    assert list(made) == [p.id for p in problems] and len(made) == count
    assert all(made[p.id].tolist() == theirs(p.prompt)["input_ids"] for p in problems)
    assert all(tokens.dtype == np.int32 and not tokens.flags.writeable for tokens in made.values())


def test_an_empty_prompt_is_named(world: Path):
    with pytest.raises(UserError, match="problem 'p': the tokenizer makes no token of its prompt ''"):
        Tokenizer(world / "model", "plain").prompts([Problem("p", "math", "", answer="1")])


@pytest.fixture
def model(world: Path, tmp_path: Path) -> Path:
    """A model folder whose tokenizer has no end-of-sequence token, without weights."""
    model = tmp_path / "model"
    model.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / file).write_bytes((world / "model" / file).read_bytes())
    described = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**described, "eos_token": None}))
    return model


def test_no_end_of_sequence(model: Path):
    with pytest.raises(UserError, match="names an end-of-sequence token"):
        Tokenizer(model, "srpo")


def test_worked_solutions_end_with_a_stop_token_where_the_tokenizer_has_no_end(model: Path):
    (model / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    tokenizer = Tokenizer(model, "srpo")
    ids, = tokenizer.responses([Problem("p", "math", "1+1", response="2")])
    assert tokenizer.stop_ids == [7, 9] and ids[-1] == 7 and tokenizer.text(ids) == "2"


@pytest.mark.parametrize(("text", "expected"), [
    (b"{", r"generation_config\.json: not valid JSON: "),
    (b'"\xff"', r"generation_config\.json: not valid JSON: .*invalid start byte"),
    (b"[]", r"generation_config\.json: expected an object, found list"),
    (b'{"eos_token_id": "<eos>"}', r"generation_config\.json: eos_token_id = '<eos>': must be a token id or a list"),
])
def test_bad_generation_config(model: Path, text: bytes, expected: str):
    (model / "generation_config.json").write_bytes(text)
    with pytest.raises(UserError, match=expected):
        Tokenizer(model, "srpo")


def test_a_model_without_tokenizer_files(model: Path):
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"model '.*model': there is no tokenizer\.json or tokenizer"):
        Tokenizer(model, "srpo")
