"""On an NVIDIA GPU: the attention that is chosen there, and a whole run on it."""

from __future__ import annotations

import json

import pytest
import torch
from launches import HERE, Launch, metrics
from world import World

from srpo.megatron.attention import attention, backend, per_sequence

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("heads", [(4, 4), (8, 2)], ids=["mha", "gqa"])
def test_variable_length_attention_is_that_of_each_sequence(heads: tuple[int, int]):
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, 1, 130, 131, 400], dtype=torch.int32, device="cuda")
    shapes = [(400, n, 64) for n in (heads[0], heads[1], heads[1])]
    query, key, value = (torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes)
    exact = per_sequence(query, key, value, cu_seqlens, 269)
    up = torch.randn_like(exact)
    expected = [exact, *torch.autograd.grad(exact, (query, key, value), up)]
    narrow = [x.detach().bfloat16().requires_grad_() for x in (query, key, value)]
    out = attention(*narrow, cu_seqlens, 269)
    found = [out, *torch.autograd.grad(out, narrow, up.bfloat16())]
    for got, want in zip(found, expected, strict=True):
        assert (got.float() - want).norm() / want.norm() < 1e-2, backend("cuda", torch.bfloat16)[1]


def test_a_run_on_one_gpu(world: World):
    """bfloat16, CUDA graphs, the KV cache asleep during updates; vLLM on the trainer's memory throughout."""
    output = world.train("gpu", ranks=1, model={"dtype": "bfloat16"},
                         rollout={"canary": 0.1, "kv_cache_gib": 1.0}).succeed()
    assert "moved 0 tensors" in output
    steps = metrics(world.folder / "gpu")[1:]
    assert steps and all(m["weights/aliased_bytes"] > 0 == m["weights/moved_bytes"] for m in steps)
    assert all(m["gpu/memory_gib"] > 0 for m in steps)


def test_cuda_graphs_survive_updates(world: World):
    """Captured once, before the first step. Replayed after an update they read the new weights: at this learning rate
    old ones would give other log-probs than the trainer's."""
    config = world.config("graphs", model={"dtype": "float32"}, rollout={"canary": 0.01, "kv_cache_gib": 1.0},
                          optimizer={"lr": 1e-3})
    Launch(HERE / "probe.py", "train", config, ranks=1, folder=world.folder,
           PROBE_OUT=str(world.folder / "graphs")).succeed()
    seen = json.loads((world.folder / "graphs-0.json").read_text())
    assert len(seen) >= 3 and len({step["graphs"] for step in seen}) == 1 and seen[0]["graphs"] > 0
    assert all(step["stayed"] and step["aliased"] and step["updated"] for step in seen)
