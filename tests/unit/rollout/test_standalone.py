"""How batches follow each other in vLLM, for which a stand-in says what it holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from srpo.data.schema import Problem
from srpo.rollout.standalone import StandaloneEngine
from srpo.rollout.stop import StopStrings

BATCHES = [[Problem(f"{n}{i}", "math", "", answer="1") for i in range(3)] for n in "abcd"]


class Engine:
    """Finishes a request a pass, the latest first. `held`: how many it had in each pass."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.held: list[int] = []

    def add_request(self, name: str, *_: Any) -> str:
        self.requests.append(name)
        return name

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def get_num_unfinished_requests(self) -> int:
        return len(self.requests)

    def step(self) -> list[Any]:
        self.held.append(len(self.requests))
        completion = SimpleNamespace(token_ids=[1], finish_reason="stop")
        return [SimpleNamespace(request_id=self.requests.pop(), outputs=[completion])]


@pytest.mark.parametrize(("enough", "held"), [
    (1, [3, 2, 1] * 4),                            # on CPU
    (5, [6, 5, 7, 6, 5, 7, 6, 5, 4, 3, 2, 1]),     # at least five, until there are no more
    (100, list(range(12, 0, -1)))])
def test_a_batch_begins_before_the_last_one_ends(enough: int, held: list[int]):
    made: Any = object.__new__(StandaloneEngine)
    engine = Engine()
    made._llm = SimpleNamespace(llm_engine=engine, reset_prefix_cache=lambda: not engine.requests)
    made._tokenizer = SimpleNamespace(stop_ids=[0], text=lambda tokens: "x", prompts=lambda problems: {
        p.id: np.array([1, 2], np.int32) for p in problems})
    made._max_tokens, made._on_cuda, made._enough, made._stop = 4, False, enough, StopStrings([], made._tokenizer)
    finished = [key for passed in made.generate(BATCHES, 1, 1.0) for key in passed]
    assert sorted(finished) == sorted((p.id, 0) for problems in BATCHES for p in problems) and engine.held == held
