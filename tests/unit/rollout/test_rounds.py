"""Where a step's random numbers come from on CPU; a stand-in takes vLLM's place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from srpo.rollout.engine import RolloutEngine


def seed(step: int, replica: int = 0, **options: int) -> int:
    """torch's, as a call of `generate` leaves it."""
    made = object.__new__(RolloutEngine)
    made.on_cuda, made.seed, made.replica, made.replicas = False, 1, replica, 2
    made.max_tokens, made.stop_ids, made.stop, made._before = 4, [], SimpleNamespace(strings=[]), {}
    requests = SimpleNamespace(add_request=lambda *args: None, has_unfinished_requests=lambda: False)
    made.llm: Any = SimpleNamespace(reset_prefix_cache=lambda: True, llm_engine=requests)
    list(made.generate({"p": [1]}, step=step, samples=2, temperature=1.0, **options))
    return torch.initial_seed()


def test_every_step_replica_and_round_has_numbers_of_its_own() -> None:
    every = [seed(step, replica, round=n) for step in (1, 2) for replica in (0, 1) for n in (1, 2, 3)]
    assert len(set(every)) == len(every) and seed(1) == every[0]
