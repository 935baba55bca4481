"""Where responses end with stop strings: in tokens alone, and in what vLLM makes of a toy model."""

from __future__ import annotations

import string
from itertools import pairwise
from pathlib import Path

import pytest

from srpo.data import toy
from srpo.data.prompts import Tokenizer
from srpo.data.schema import Problem
from srpo.rewards.format import well_formed
from srpo.rewards.math import extract
from srpo.rollout.standalone import Completion, StandaloneEngine
from srpo.rollout.stop import StopStrings, _Watch

BASE = "7*8 = 56</think><answer>56</answer>\nUser: What is 2+2?\nAssistant: <think>4</think><answer>4</answer>"
"""What a base model goes on with."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop") / "model"
    toy.write_model(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer(model, "plain")


def tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.responses([Problem("p", "math", "", response=text)])[0][:-1]


def end(stop: StopStrings, response: list[int], before: int = 0) -> list[int]:
    """The response as far as it comes when it is generated a token at a time, its first tokens by an earlier request.
    """
    watch = _Watch(stop, response[:before])
    for token in response[before:]:
        if watch.update([token], False):
            break
    assert watch.num_output_tokens() == len(watch.output_token_ids)
    return response[:before] + watch.output_token_ids


@pytest.mark.parametrize(("strings", "text", "kept"), [
    (["</answer>"], BASE, BASE[:BASE.index("\nUser")]),                  # one token
    (["User:"], BASE, BASE[:BASE.index(" What")]),                       # many
    (["Assistant:", "User:"], BASE, BASE[:BASE.index(" What")]),         # whichever comes first
    (["answer>5"], BASE, BASE[:BASE.index("6</answer>")]),               # from within a token
    (["never"], BASE, BASE),
    ([], BASE, BASE),
    (["。"], "一。二。", "一。"),                                         # whose characters are several tokens
    (["aab"], "aaab aab", "aaab"),
    (["f(x)"], "\n```python\ndef f(x):\n    return", "\n```python\ndef f(x):\n"),  # with all of the token that ends it
])
def test_a_response_ends_with_the_token_that_completes_a_string(tokenizer, strings, text, kept):
    stop, response = StopStrings(strings, tokenizer), tokens(tokenizer, text)
    whole = end(stop, response)
    assert tokenizer.text(whole) == kept
    for before in range(len(whole)):  # wherever it was interrupted
        assert end(stop, response, before) == whole


def test_the_graders_see_the_answer_and_not_what_would_follow(tokenizer):
    whole = tokenizer.text(end(StopStrings(["</answer>"], tokenizer), tokens(tokenizer, BASE)))
    assert extract(whole) == "56" and well_formed(whole, "think_answer")
    assert extract(BASE) == "4" and not well_formed(BASE, "think_answer")


def test_vllm_ends_a_response_there(model: Path, tokenizer: Tokenizer):
    """One response of an untrained model to one prompt: the same but for where it ends."""
    engine = StandaloneEngine(str(model), "plain", 200, max_prompt=16)

    def sample(*strings: str) -> Completion:
        engine._stop = StopStrings(strings, tokenizer)
        passes = engine.generate([[Problem("p", "math", "1+2+3=", answer="6")]], 1, 1.0)
        (response,) = (completion for finished in passes for completion in finished.values())
        return response

    free = sample()
    characters = set(string.printable) - set("".join(toy.PIECES))  # each a token
    pair = next(a + b for a, b in pairwise(free.text[10:]) if {a, b} <= characters and free.text.index(a + b) >= 10)
    stopped = sample("none of this", pair)
    assert stopped.text == free.text[:free.text.index(pair) + 2]
    assert stopped.tokens < free.tokens == 200 and free.truncated and not stopped.truncated
    assert sample() == free
