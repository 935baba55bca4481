"""Configurations to plan for."""

from __future__ import annotations

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
