"""The single table that pairs every Hugging Face tensor with a parameter of each rank: loading, export and the reshard
plan follow it. It describes Megatron's parameters and, under other names (srpo/rollout/shares.py), vLLM's, which are
laid out alike on purpose: q above k above v, gate above up, the vocabulary padded to a multiple of 64. Shapes only: no
torch, no Megatron-Core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VOCAB_MULTIPLE = 64  # vLLM's DEFAULT_VOCAB_PADDING_SIZE


def head_dim(hf: Any) -> int:
    """Width D of one attention head."""
    return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads


def padded_vocab_size(hf: Any) -> int:
    """Rows of the embedding over all tensor ranks, padded as vLLM pads it."""
    return -(-hf.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class Entry:
    """A Hugging Face tensor and where a tensor rank keeps its share: rows or columns `start` .. `start + size` of a
    (global) parameter."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    """Megatron's name, with layers counted over all pipeline stages."""
    axis: int
    """The share's place is counted along this axis; 1 is an unstacked matrix's."""
    size: int
    """Length of a share along `axis`. All shares together may exceed the tensor's: the vocabulary's padding."""
    shares: int
    """How many there are. Fewer than the tensor ranks: neighbours hold the same one."""
    start: int = 0
    stage: int = 0
    """Pipeline stage."""
    duplicate: bool = False
    """A second copy (tied output weight on the last stage): loaded, never exported."""

    def begin(self, rank: int, ranks: int) -> int:
        """Where the share of one of the tensor ranks begins in the full tensor."""
        return rank * self.shares // ranks * self.size


def layout(hf: Any, tensor: int, pipeline: int) -> Iterator[Entry]:
    """Every tensor of the model, in the order of the Hugging Face modules, for a tensor x pipeline layout. Key-value
    heads that are fewer than the tensor ranks are repeated, as vLLM does; Megatron's never are."""
    hidden, ffn = hf.hidden_size, hf.intermediate_size
    query, kv = hf.num_attention_heads * head_dim(hf), hf.num_key_value_heads * head_dim(hf)
    kv_shares = min(tensor, hf.num_key_value_heads)
    embed, output = "embedding.word_embeddings.weight", "output_layer.weight"
    last = pipeline - 1

    def vocabulary(name: str, parameter: str, stage: int = 0, duplicate: bool = False) -> Entry:
        size = padded_vocab_size(hf) // tensor
        return Entry(name, (hf.vocab_size, hidden), parameter, 0, size, tensor, 0, stage, duplicate)

    def whole(name: str, length: int, parameter: str, stage: int) -> Entry:
        return Entry(name, (length,), parameter, 0, length, 1, stage=stage)

    yield vocabulary("model.embed_tokens.weight", embed)
    for layer in range(hf.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}", f"decoder.layers.{layer}"
        stage = layer * pipeline // hf.num_hidden_layers
        for kind, width in (("weight", (hidden,)), ("bias", ())):
            if kind == "bias" and hf.model_type != "qwen2":
                continue
            start = 0
            for name, rows, shares in (("q", query, tensor), ("k", kv, kv_shares), ("v", kv, kv_shares)):
                yield Entry(f"{theirs}.self_attn.{name}_proj.{kind}", (rows, *width),
                            f"{ours}.self_attention.linear_qkv.{kind}", 0, rows // shares, shares, start, stage)
                start += rows // shares
        if hf.model_type == "qwen3":
            for name in ("q", "k"):
                parameter = f"{ours}.self_attention.{name}_layernorm.weight"
                yield whole(f"{theirs}.self_attn.{name}_norm.weight", head_dim(hf), parameter, stage)
        yield Entry(f"{theirs}.self_attn.o_proj.weight", (hidden, query), f"{ours}.self_attention.linear_proj.weight",
                    1, query // tensor, tensor, stage=stage)
        for name, start in (("gate", 0), ("up", ffn // tensor)):
            yield Entry(f"{theirs}.mlp.{name}_proj.weight", (ffn, hidden), f"{ours}.mlp.linear_fc1.weight",
                        0, ffn // tensor, tensor, start, stage)
        yield Entry(f"{theirs}.mlp.down_proj.weight", (hidden, ffn), f"{ours}.mlp.linear_fc2.weight",
                    1, ffn // tensor, tensor, stage=stage)
        for name, parameter in (("input", "input"), ("post_attention", "pre_mlp")):
            yield whole(f"{theirs}.{name}_layernorm.weight", hidden, f"{ours}.{parameter}_layernorm.weight", stage)
    yield whole("model.norm.weight", hidden, "decoder.final_layernorm.weight", last)
    if not hf.tie_word_embeddings:
        yield vocabulary("lm_head.weight", output, last)
    elif pipeline > 1:
        yield vocabulary("model.embed_tokens.weight", output, last, duplicate=True)
