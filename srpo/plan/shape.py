"""The sizes of a model: what every formula of the plan starts from.

Qwen2.5-7B, 32B and 72B ship as their config.json (models/, the base models' as published by Qwen), so that planning for
them needs no download.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo.config import Config, hf_config
from srpo.errors import UserError

MODELS = Path(__file__).parent / "models"


def with_model(config: Config) -> Config:
    """The configuration with `model.path` at a directory that has a config.json: itself, or the one that ships of that
    name ("models/Qwen2.5-7B", "Qwen/Qwen2.5-7B"). Raises UserError when there is neither."""
    path = Path(config.model.path)
    if (path / "config.json").exists():
        return config
    shipped = MODELS / path.name.lower()
    if not shipped.is_dir():
        names = ", ".join(sorted(p.name for p in MODELS.iterdir()))
        raise UserError(f"model.path = {config.model.path!r}: has no config.json, and is none of the models whose "
                        f"sizes are known: {names}")
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(shipped)})})


@dataclass(frozen=True)
class Shape:
    """A dense decoder with grouped-query attention and a gated feed-forward layer."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    """Padded to a multiple of 64, as trainer and vLLM hold it."""
    real_vocab: int
    """Without the padding."""
    tied: bool
    bias: bool
    """On query, key and value (Qwen2)."""
    qk_norm: bool
    """On every head's query and key (Qwen3)."""

    @classmethod
    def of(cls, config: Config) -> Shape:
        """From config.json. Raises UserError when it is missing or not supported."""
        hf: dict[str, Any] = hf_config(config.model.path)
        for key in ("hidden_size", "vocab_size"):
            if not isinstance(hf.get(key), int):
                raise UserError(f"{config.model.path}/config.json: {key} = {hf.get(key)!r}: must be a positive integer")
        heads = hf["num_attention_heads"]
        return cls(
            layers=hf["num_hidden_layers"], hidden=hf["hidden_size"], ffn=hf["intermediate_size"], heads=heads,
            kv_heads=hf.get("num_key_value_heads") or heads, head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
            vocab=-(-hf["vocab_size"] // 64) * 64, real_vocab=hf["vocab_size"],
            tied=hf.get("tie_word_embeddings", False), bias=hf["model_type"] == "qwen2",
            qk_norm=hf["model_type"] == "qwen3")

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    def layer(self, tensor: int = 1) -> list[int]:
        """Elements of each parameter of one layer on one of `tensor` ranks."""
        qkv = (self.query + 2 * self.kv) // tensor
        norms = [self.hidden, self.hidden] + [self.head_dim] * (2 * self.qk_norm)
        return [*norms, self.hidden * qkv, *[qkv] * self.bias, self.query // tensor * self.hidden,
                2 * self.ffn // tensor * self.hidden, self.ffn // tensor * self.hidden]

    def embedding(self, tensor: int = 1) -> int:
        """Elements of the embedding, or of the output matrix, on one of `tensor` ranks."""
        return self.vocab // tensor * self.hidden

    def stage(self, stage: int, tensor: int, pipeline: int) -> list[int]:
        """Elements of each parameter on one rank of a pipeline stage. With tied embeddings and several stages the last
        stage has a copy."""
        sizes = self.layer(tensor) * (self.layers // pipeline)
        last = stage == pipeline - 1
        if stage == 0:
            sizes.insert(0, self.embedding(tensor))
        if last:
            sizes.append(self.hidden)
        if last and not (self.tied and pipeline == 1):
            sizes.append(self.embedding(tensor))
        return sizes

    @property
    def parameters(self) -> int:
        """Weights of the whole model, the vocabulary's padding counted."""
        return sum(self.stage(0, 1, 1))

    @property
    def matrices(self) -> int:
        """Weights that every token is multiplied by, the output matrix not counted."""
        per_layer = self.hidden * (2 * self.query + 2 * self.kv) + 3 * self.hidden * self.ffn
        return self.layers * per_layer
