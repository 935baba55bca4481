"""The order in which a rank sends and receives, without a network: what arrives does so when it is waited for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from srpo.rollout import transport
from srpo.rollout.reshard import plan
from srpo.rollout.shares import Layout, parameters, shapes

MODEL = SimpleNamespace(hidden_size=32, intermediate_size=64, num_attention_heads=8, num_key_value_heads=4, head_dim=8,
                        vocab_size=197, num_hidden_layers=4, tie_word_embeddings=False, model_type="qwen2")


class Network:
    """Stands for torch.distributed on one rank: all that is sent to it is ones."""

    isend, irecv = "send", "receive"

    def __init__(self, rank: int) -> None:
        self.rank, self.sent = rank, 0

    def get_rank(self) -> int:
        return self.rank

    def P2POp(self, what: str, buffer: torch.Tensor, peer: int) -> tuple[str, torch.Tensor]:
        return what, buffer

    def batch_isend_irecv(self, operations: list[tuple[str, torch.Tensor]]) -> list[Any]:
        assert operations  # as torch's
        for what, buffer in operations:
            if what == self.isend:
                assert bool((buffer == 1).all()), "sent before it had arrived"
                self.sent += 1
        return [SimpleNamespace(wait=lambda: [b.fill_(1) for what, b in operations if what == self.irecv])]


@pytest.mark.parametrize("train, rollout, node", [((4, 2), (2, 2), 2), ((4, 2), (2, 2), 4), ((2, 4), (8, 1), 4)])
def test_what_is_passed_on_has_arrived(monkeypatch: pytest.MonkeyPatch, train: tuple[int, int],
                                       rollout: tuple[int, int], node: int) -> None:
    """Also where a rank has nothing to do in the round between."""
    made = plan(MODEL, Layout(*train), Layout(*rollout), itemsize=4, node=node)
    held = parameters(MODEL, Layout(*train), vllm=False)
    for rank in range(made.ranks):
        monkeypatch.setattr(transport, "dist", network := Network(rank))
        source = {name: torch.ones(shape) for name, shape in shapes(held[rank % len(held)]).items()}
        target = {name: torch.full(shape, torch.nan) for name, shape in made.shapes[rank].items()}
        assert transport.Transport(made, source, target).run() == made.received[rank]
        assert network.sent == sum(m.source == rank for moves in made.rounds for m in moves)
        for name in target.keys() - made.aliases[rank].keys():
            assert not bool(target[name].isnan().any())
