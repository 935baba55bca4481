"""How a warm start divides its work; what it learns is in tests/distributed/test_step.py and the quickstart's runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srpo import warm_start as module
from srpo.batch import MicroBatch
from srpo.config import WarmStart
from srpo.errors import UserError

LENGTHS = [4, 9, 3, 6]
"""Tokens of a prompt and its response."""


class Characters:
    """A tokenizer of texts whose characters are token ids."""

    def prompts(self, problems: list[Any]) -> dict[str, list[int]]:
        return {p.id: [int(c) for c in p.prompt] for p in problems}

    def responses(self, problems: list[Any]) -> list[list[int]]:
        return [[int(c) for c in p.response] for p in problems]


class Trainer:
    """Learns nothing, and keeps what it was given."""

    is_last_stage = False

    def __init__(self) -> None:
        self.passes: list[list[MicroBatch]] = []

    def forward_backward(self, batches: list[MicroBatch], *_: Any) -> list[Any]:
        self.passes.append(batches)
        return []

    def optimizer_step(self, lr: float) -> float:
        return lr


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    rows = [{"id": str(i), "domain": "math", "prompt": "12", "response": "3" * (n - 2), "answer": "3"}
            for i, n in enumerate(LENGTHS)]
    (tmp_path / "worked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(module, "all_gather", lambda value: [value])
    return [str(tmp_path / "worked.jsonl")]


def warm(data: list[str], micro_batch: int, tokens: int | None) -> list[list[MicroBatch]]:
    trainer: Any = Trainer()
    config: Any = SimpleNamespace(seed=1, parallel=SimpleNamespace(tensor=1), batch=SimpleNamespace(
        micro_batch=micro_batch, micro_batch_tokens=tokens))
    tokenizer: Any = Characters()
    module.warm_start(config, WarmStart(data=data, steps=3, batch=10), trainer, tokenizer, rank=0, ranks=2)
    return trainer.passes


@pytest.mark.parametrize(("micro_batch", "tokens", "passes"), [(8, None, 1), (2, None, 3), (1, None, 5), (1, 8, None)])
def test_micro_batches_are_as_the_runs(data: list[str], micro_batch: int, tokens: int | None, passes: int | None):
    for batches in warm(data, micro_batch, tokens):
        sequences = [int((batch.sample_index >= 0).sum()) for batch in batches]
        if tokens is None:
            assert len(batches) == passes and sum(sequences) == 5 and max(sequences) <= micro_batch
        else:
            assert len(batches) > 1 and all(len(batch.tokens) <= tokens for batch in batches)


def test_a_solution_that_fits_no_micro_batch_is_named(data: list[str]):
    with pytest.raises(UserError) as error:
        warm(data, 1, 7)
    assert str(error.value) == ("warm_start.data: problem '1' and its response have 8 tokens, batch.micro_batch_tokens "
                                "is 7; raise that, or leave the problem out")
