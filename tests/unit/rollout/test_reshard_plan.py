"""The reshard plan, carried out in numpy on numbered elements, against shards cut here by other means."""

from __future__ import annotations

import itertools
import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from srpo.rollout import reshard
from srpo.rollout.reshard import Plan, plan
from srpo.rollout.shares import Layout, Part, parameters, shapes

ITEMSIZE = 2
Arrays = dict[str, np.ndarray]


def model(kind: str, kv_heads: int, *, tied: bool = False, heads: int = 8, layers: int = 4, vocab: int = 197) -> Any:
    return SimpleNamespace(model_type=kind, hidden_size=24, intermediate_size=48, num_attention_heads=heads, head_dim=4,
                           num_key_value_heads=kv_heads, num_hidden_layers=layers, vocab_size=vocab,
                           tie_word_embeddings=tied)


EIGHTS = [model("qwen2", 2, tied=True), model("qwen3", 4), model("llama", 4, tied=True)]
SIXES = [model("qwen2", 6, heads=12, layers=6, vocab=190)]
PAIRS = [*itertools.product([(1, 1), (2, 1), (1, 2), (2, 2), (1, 4)],
                            [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4), (8, 1), (4, 2)])]
UNEVEN = [*itertools.product([(2, 1), (3, 1), (2, 3), (6, 1)], [(1, 1), (3, 1), (2, 1), (3, 2), (1, 2)])]


def tensors(hf: Any) -> Arrays:
    """Every element of the model has a number of its own, from 1."""
    count = itertools.count(1)

    def new(*shape: int) -> np.ndarray:
        return np.fromiter(itertools.islice(count, math.prod(shape)), np.int64).reshape(shape)

    h, f, q, kv = hf.hidden_size, hf.intermediate_size, hf.num_attention_heads * 4, hf.num_key_value_heads * 4
    out = {"embed": new(hf.vocab_size, h), "norm": new(h)} | ({} if hf.tie_word_embeddings else
                                                             {"head": new(hf.vocab_size, h)})
    for i in range(hf.num_hidden_layers):
        out |= {f"{i}.q": new(q, h), f"{i}.k": new(kv, h), f"{i}.v": new(kv, h), f"{i}.o": new(h, q),
                f"{i}.gate": new(f, h), f"{i}.up": new(f, h), f"{i}.down": new(h, f), f"{i}.in": new(h),
                f"{i}.post": new(h)}
        if hf.model_type == "qwen2":
            out |= {f"{i}.qb": new(q), f"{i}.kb": new(kv), f"{i}.vb": new(kv)}
        if hf.model_type == "qwen3":
            out |= {f"{i}.qn": new(4), f"{i}.kn": new(4)}
    return out


def shard(full: Arrays, hf: Any, layout: tuple[int, int], rank: int, vllm: bool) -> Arrays:
    """What a rank holds, under names as in the plan; zeros pad the vocabulary."""
    tensor, pipeline = layout
    t, stage = rank % tensor, rank // tensor % pipeline
    first, last = stage == 0, stage == pipeline - 1

    def rows(name: str) -> np.ndarray:
        return np.split(full[name], tensor)[t]

    def heads(name: str) -> np.ndarray:
        each = np.split(full[name], hf.num_key_value_heads)
        copies = [h for h in each for _ in range(max(1, tensor // len(each)))]
        return np.concatenate(copies[t * len(copies) // tensor : (t + 1) * len(copies) // tensor])

    def vocabulary(name: str) -> np.ndarray:
        missing = -len(full[name]) % 64
        return np.split(np.pad(full[name], ((0, missing), (0, 0))), tensor)[t]

    out: Arrays = {}
    if first:
        out["model.embed_tokens.weight" if vllm else "embedding.word_embeddings.weight"] = vocabulary("embed")
    if last:
        out["model.norm.weight" if vllm else "decoder.final_layernorm.weight"] = full["norm"]
        if not hf.tie_word_embeddings:
            out["lm_head.weight" if vllm else "output_layer.weight"] = vocabulary("head")
        elif not first:
            out["model.embed_tokens.weight" if vllm else "output_layer.weight"] = vocabulary("embed")
    each = hf.num_hidden_layers // pipeline
    for i in range(stage * each, (stage + 1) * each):
        at = f"model.layers.{i}." if vllm else f"decoder.layers.{i}."
        layer = {
            ("self_attn.qkv_proj.weight", "self_attention.linear_qkv.weight"):
                np.concatenate([rows(f"{i}.q"), heads(f"{i}.k"), heads(f"{i}.v")]),
            ("self_attn.o_proj.weight", "self_attention.linear_proj.weight"):
                np.split(full[f"{i}.o"], tensor, axis=1)[t],
            ("mlp.gate_up_proj.weight", "mlp.linear_fc1.weight"):
                np.concatenate([rows(f"{i}.gate"), rows(f"{i}.up")]),
            ("mlp.down_proj.weight", "mlp.linear_fc2.weight"): np.split(full[f"{i}.down"], tensor, axis=1)[t],
            ("input_layernorm.weight", "input_layernorm.weight"): full[f"{i}.in"],
            ("post_attention_layernorm.weight", "pre_mlp_layernorm.weight"): full[f"{i}.post"],
        }
        if hf.model_type == "qwen2":
            layer["self_attn.qkv_proj.bias", "self_attention.linear_qkv.bias"] = np.concatenate(
                [rows(f"{i}.qb"), heads(f"{i}.kb"), heads(f"{i}.vb")])
        if hf.model_type == "qwen3":
            layer["self_attn.q_norm.weight", "self_attention.q_layernorm.weight"] = full[f"{i}.qn"]
            layer["self_attn.k_norm.weight", "self_attention.k_layernorm.weight"] = full[f"{i}.kn"]
        out |= {at + theirs if vllm else at + ours: array for (theirs, ours), array in layer.items()}
    return out


def carry_out(p: Plan, held: list[Arrays]) -> list[Arrays]:
    """What vLLM then has. A round is read before what the former one brought is there: two are under way at a time."""
    have = [{name: np.full(shape, -1) for name, shape in mine.items()} for mine in p.shapes]
    for rank, aliases in enumerate(p.aliases):
        for name, (whole, row) in aliases.items():
            have[rank][name] = held[rank][whole][row : row + len(have[rank][name])]
        for part in p.padding[rank]:
            view(have[rank], part)[:] = 0
        for m in p.copies[rank]:
            view(have[rank], m.write)[:] = view(held[rank], m.read)
    under_way: list[tuple[np.ndarray, np.ndarray]] = []
    for moves in [*p.rounds, []]:
        former = under_way
        under_way = [(view(have[m.target], m.write), view((have if m.relayed else held)[m.source], m.read).copy())
                     for m in moves]
        for to, brought in former:
            assert (to == -1).all(), "overwrites what was there"
            to[:] = brought
    return have


def view(arrays: Arrays, part: Part) -> np.ndarray:
    array = arrays[part.parameter]
    return array.reshape(len(array), -1)[slice(*part.rows), slice(*part.columns)]


def numbers(arrays: Arrays) -> set[int]:
    return set(np.concatenate([a.ravel() for a in arrays.values()]).tolist()) - {0}


@pytest.mark.parametrize(("hf", "train", "rollout"), [
    *((hf, *pair) for i, pair in enumerate(PAIRS) for hf in EIGHTS[i % 3 :: 3]),
    *((hf, *pair) for pair in UNEVEN for hf in SIXES)],
    ids=lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else f"{x.model_type}-{x.num_key_value_heads}")
@pytest.mark.parametrize("node", [2, 8])
def test_plan(hf: Any, train: tuple[int, int], rollout: tuple[int, int], node: int) -> None:
    p = plan(hf, Layout(*train), Layout(*rollout), itemsize=ITEMSIZE, node=node)
    full = tensors(hf)
    assert p.ranks == math.lcm(math.prod(train), math.prod(rollout))
    held = [shard(full, hf, train, r, vllm=False) for r in range(p.ranks)]
    wanted = [shard(full, hf, rollout, r, vllm=True) for r in range(p.ranks)]
    have, trainer = carry_out(p, held), parameters(hf, Layout(*train), vllm=False)
    for r in range(p.ranks):
        assert shapes(trainer[r % len(trainer)]) == {n: a.shape for n, a in held[r].items()}
        assert have[r].keys() == wanted[r].keys() and all((have[r][n] == a).all() for n, a in wanted[r].items())
        assert p.received[r] == p.needed[r] == len(numbers(wanted[r]) - numbers(held[r])) * ITEMSIZE
    assert sum(p.sent) == sum(p.received)
    nodes = [range(n, min(n + node, p.ranks)) for n in range(0, p.ranks, node)]
    crossing = sum(m.nbytes for moves in p.rounds for m in moves if m.source // node != m.target // node)
    least = [set().union(*(numbers(wanted[r]) for r in n)) - set().union(*(numbers(held[r]) for r in n)) for n in nodes]
    assert crossing == sum(map(len, least)) * ITEMSIZE  # no slice goes to a node twice


def test_rounds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reshard, "STAGING", 2000)
    p = plan(EIGHTS[0], Layout(2, 2), Layout(1, 1), itemsize=ITEMSIZE)
    assert p.largest > 2000 and len(p.rounds) > 10
    for moves, end in itertools.product(p.rounds, ("source", "target")):
        loads = [sum(m.nbytes for m in moves if getattr(m, end) == r) for r in range(p.ranks)]
        assert 0 < max(loads) <= 2000 // 4


def test_ranks_share_the_sending() -> None:
    """Ranks 0 and 2 have the same slices, 1 and 3 the others."""
    p = plan(EIGHTS[1], Layout(1, 2), Layout(4, 1), itemsize=ITEMSIZE)
    assert abs(p.sent[0] - p.sent[2]) <= p.largest // 8 and abs(p.sent[1] - p.sent[3]) <= p.largest // 8
    near = plan(EIGHTS[1], Layout(1, 2), Layout(4, 1), itemsize=ITEMSIZE, node=2)
    assert all(m.source // 2 == m.target // 2 for moves in near.rounds for m in moves)


def test_replicas_have_plans_of_their_own() -> None:
    p = plan(EIGHTS[1], Layout(2, 1), Layout(1, 1), itemsize=ITEMSIZE, rank=5)
    assert (p.first, p.ranks) == (4, 2)


def test_same_layout_is_all_aliased() -> None:
    p = plan(EIGHTS[1], Layout(2, 2), Layout(2, 2), itemsize=ITEMSIZE)
    assert [*map(len, p.aliases)] == [*map(len, p.shapes)] and not p.rounds and not any(p.copies)
    assert p.summary(1) == "weights: aliased 17 tensors (0.000 GiB), moved 0 tensors (0.000 GiB a sync)"


def test_plan_of_a_large_model_prints_itself() -> None:
    hf = SimpleNamespace(model_type="qwen2", hidden_size=5120, intermediate_size=27648, num_attention_heads=40,
                         num_key_value_heads=8, num_hidden_layers=64, vocab_size=152064, tie_word_embeddings=False)
    p = plan(hf, Layout(8, 2), Layout(8, 1), itemsize=2)
    text = str(p)
    assert text.startswith("reshard plan 8x2 -> 8x1 (tensor x pipeline), ranks 0 to 15, 2 bytes an element; GiB\n")
    assert re.search(r"^gate_up_proj.weight +33\.750 +0\.000 +33\.750$", text, re.MULTILINE)
    assert re.search(r"^all +61\.036 +0\.000 +61\.036 +61\.036 +61\.036$", text, re.MULTILINE)
    assert "bytes moved / lower bound = 1.000; " in text
    assert p.summary(0) == "weights: aliased 225 tensors (3.815 GiB), moved 226 tensors (3.815 GiB a sync)"
