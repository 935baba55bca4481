"""Configurations to plan for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from srpo.config import Config
from srpo.plan.job import Job
from srpo.plan.shape import Shape, with_model


def config(model: str = "Qwen2.5-7B", dtype: str = "bfloat16", **sections: dict[str, Any]) -> Config:
    """A shipped model, responses of up to 8,192 tokens, one at its limit a micro-batch."""
    base: dict[str, Any] = dict(
        run="unused", model=dict(path=model, dtype=dtype), data=dict(train=["unused"], max_prompt_tokens=1024),
        batch=dict(micro_batch_tokens=9216), rollout=dict(max_response_tokens=8192, kv_cache_gib=8.0),
        stages=[dict(name="unused", domains=["math"], until="steps", steps=1)])
    merged = {name: base.get(name, {}) | sections.get(name, {}) for name in ("batch", "rollout")}
    return with_model(Config.model_validate(base | sections | merged))


def job(gpus: int = 8, model: str = "Qwen2.5-7B", dtype: str = "bfloat16", **sections: dict[str, Any]) -> Job:
    made = config(model, dtype, **sections)
    return Job(made, Shape.of(made), gpus)


def tiny(kind: str, tied: bool, kv_heads: int) -> tuple[SimpleNamespace, Shape]:
    """A small model as transformers describes it, and as the planner does."""
    hf = SimpleNamespace(
        hidden_size=32, intermediate_size=48, num_attention_heads=8, num_key_value_heads=kv_heads, head_dim=8,
        vocab_size=197, num_hidden_layers=4, tie_word_embeddings=tied, model_type=kind)
    shape = Shape(layers=4, hidden=32, ffn=48, heads=8, kv_heads=kv_heads, head_dim=8, vocab=256, real_vocab=197,
                  tied=tied, bias=kind == "qwen2", qk_norm=kind == "qwen3")
    return hf, shape
