"""Where every rank keeps which part of which tensor: the trainer's ranks and vLLM's, in one geometry.

Shapes only, from the table in srpo/megatron/layout.py: no torch, and no ranks needed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from srpo.megatron.layout import Entry, layout

Span = tuple[int, int]
"""Begin and end."""


class Layout(NamedTuple):
    """Tensor ranks are adjacent, then pipeline stages, then replicas: Megatron's order here and vLLM's."""

    tensor: int
    pipeline: int

    @property
    def ranks(self) -> int:
        """Of one replica."""
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"{self.tensor}x{self.pipeline}"


class Part(NamedTuple):
    """A block of a rank's parameter. A vector is a single column."""

    parameter: str
    rows: Span
    columns: Span


class Piece(NamedTuple):
    """A rank's share of a tensor, in a parameter where the entry says; it begins at `begin` of the full tensor."""

    entry: Entry
    parameter: str
    begin: int

    @property
    def span(self) -> Span:
        """Of the full tensor, along the entry's axis; without the vocabulary's padding."""
        end = self.entry.shape[self.entry.axis]
        return min(self.begin, end), min(self.begin + self.entry.size, end)

    @property
    def line(self) -> int:
        """Elements of one step along the axis."""
        return math.prod(self.entry.shape) // self.entry.shape[self.entry.axis]

    def block(self, span: Span) -> tuple[Span, Span]:
        """Rows and columns of a span of the full tensor."""
        return (span, (0, self.line)) if self.entry.axis == 0 else ((0, self.entry.shape[0]), span)

    def place(self, rows: Span, columns: Span) -> Part:
        """Where a block of the full tensor lies in the parameter."""
        shift = self.entry.start - self.begin
        if self.entry.axis == 0:
            return Part(self.parameter, (rows[0] + shift, rows[1] + shift), columns)
        return Part(self.parameter, rows, (columns[0] + shift, columns[1] + shift))

    def padding(self) -> list[Part]:
        """The rows that lie beyond the full tensor, if any."""
        rows = self.entry.size - (self.span[1] - self.span[0])
        end = self.entry.start + self.entry.size
        return [Part(self.parameter, (end - rows, end), (0, self.line))] if rows else []


Parameters = dict[str, list[Piece]]
"""The pieces of each parameter of a rank, in their order."""


def parameters(hf: Any, of: Layout, *, vllm: bool) -> list[Parameters]:
    """Of each rank of a replica: of vLLM, or of the trainer, whose layers are counted over all stages."""
    replica: list[Parameters] = [{} for _ in range(of.ranks)]
    for entry in layout(hf, of.tensor, of.pipeline):
        name = _vllm_name(entry) if vllm else entry.parameter
        for t in range(of.tensor):
            piece = Piece(entry, name, entry.begin(t, of.tensor))
            replica[entry.stage * of.tensor + t].setdefault(name, []).append(piece)
    return replica


def shapes(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    out = {}
    for name, pieces in parameters.items():
        shape = list(pieces[0].entry.shape)
        shape[pieces[0].entry.axis] = sum(p.entry.size for p in pieces)
        out[name] = tuple(shape)
    return out


_TOP = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_LAYER = {
    "input_layernorm": "input_layernorm",
    "self_attention.linear_qkv": "self_attn.qkv_proj",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "self_attention.linear_proj": "self_attn.o_proj",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc1": "mlp.gate_up_proj",
    "mlp.linear_fc2": "mlp.down_proj",
}


def _vllm_name(entry: Entry) -> str:
    """vLLM's name of the parameter that holds a tensor. A tied output matrix is the embedding there, on any stage."""
    if entry.duplicate:
        return entry.name
    if not entry.parameter.startswith("decoder.layers."):
        return _TOP[entry.parameter]
    number, rest = entry.parameter.removeprefix("decoder.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    return f"model.layers.{number}.{_LAYER[module]}.{kind}"
