"""srpo plan's memory against what is allocated: buffers byte for byte, and the peak of a whole update of the real
Trainer, on models in which each term matters in turn. On CPU the plan describes the CPU's kernels, see
srpo/plan/memory.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from megatron.core.parallel_state import get_global_memory_buffer
from models import build
from srpo_kernels import linear
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from benchmarks.timing import peak_memory
from srpo.batch import Sample, pack
from srpo.megatron import offload
from srpo.megatron.step import Trainer
from srpo.plan import memory
from srpo.plan.job import Job
from srpo.plan.shape import Shape

WIDE = dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=64, max_position_embeddings=2048)  # fmt: skip
MODELS: dict[str, Any] = {  # the last one's vocabulary is most of it
    "qwen2": lambda: Qwen2Config(**WIDE, vocab_size=1000, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**WIDE, vocab_size=1000, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**WIDE | dict(num_hidden_layers=2), vocab_size=16000, tie_word_embeddings=False),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"parallel": {"recompute": "selective"}},
    "full": {"parallel": {"recompute": "full"}},
    "tp2": {"tensor": 2},
    "sp2": {"tensor": 2, "parallel": {"sequence": True}},
    "pp2": {"pipeline": 2},
    "dp2": {},
    "overlap2": {"parallel": {"overlap": True}},
}
PROMPT, RESPONSE, MICRO_BATCH = 64, 193, 8
PADDING = 3 * 4 * 256  # bytes of optimizer state for the end of a buffer, which is padded to 128 elements a rank

CASES = [
    Case(1, "qwen2 bfloat16 none"), Case(1, "qwen3 bfloat16 selective"), Case(1, "llama bfloat16 none"),
    Case(1, "qwen2 float32 full"), Case(1, "llama float32 selective"),
    Case(2, "qwen2 bfloat16 tp2"), Case(2, "qwen3 bfloat16 sp2"), Case(2, "qwen3 bfloat16 pp2"),
    Case(2, "llama bfloat16 dp2"), Case(2, "qwen2 float32 sp2"), Case(2, "llama bfloat16 overlap2"),
]  # fmt: skip


def start(model: str, dtype: str, settings: dict[str, Any]) -> Trainer:
    path = Path("models", model)
    if dist.get_rank() == 0:
        MODELS[model]().save_pretrained(path)
    dist.barrier()
    trainer = build(
        path, model=dict(path=str(path), dtype=dtype), data=dict(train=["unused"], max_prompt_tokens=PROMPT),
        rollout=dict(max_response_tokens=RESPONSE), batch=dict(prompts=4, samples=4, micro_batch=MICRO_BATCH),
        **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.normal_(0, 0.02)
    trainer.optimizer.reload_model_params()
    return trainer


def _wait(work: dist.Work, *args: Any, wait: Any = dist.Work.wait) -> Any:
    """gloo's thread lets go of the tensors a moment after `wait` returns, and the profiler does not see what that
    thread frees: give it that moment, so that the last reference is ours."""
    done = wait(work, *args)
    time.sleep(0.002)
    return done


def buffers(trainer: Trainer) -> dict[str, int]:
    """Bytes that stay allocated."""
    (optimizer,) = trainer.optimizer.chained_optimizers
    state = [t for s in optimizer.optimizer.state.values() for t in s.values() if t.dim()]
    state += [p for group in optimizer.shard_fp32_from_float16_groups for p in group]
    return {
        "parameters": sum(b.param_data.nbytes for b in trainer.ddp.buffers),
        "gradients": sum(b.grad_data.nbytes for b in trainer.ddp.buffers),
        "optimizer state": sum(t.nbytes for t in state),
    }


def measure(name: str) -> dict[str, float]:
    model, dtype, setting = name.split()
    trainer = start(model, dtype, SETTINGS[setting])
    get_global_memory_buffer().buffer.clear()  # an earlier case with this layout may have used more
    micro_batches = 2  # as many as the pipeline has stages
    samples = [Sample(np.arange(PROMPT) % 997, np.arange(RESPONSE) % 997) for _ in range(MICRO_BATCH * micro_batches)]
    batches = pack(samples, [1.0] * len(samples), range(len(samples)), sequences=MICRO_BATCH, rank=0, ranks=1)

    def update() -> None:
        trainer.forward_backward(batches, len(samples) * RESPONSE)
        trainer.optimizer_step(1e-4)

    update()  # AdamW's state, and what is kept from the first time on
    held = buffers(trainer)
    gather = sum(t.nbytes for t in get_global_memory_buffer().buffer.values())
    with mock.patch.object(dist.Work, "wait", _wait):
        peak = peak_memory(update, trainer.device)

    job = Job(trainer.config, Shape.of(trainer.config), dist.get_world_size())
    device: memory.Device = "cuda" if trainer.device.type == "cuda" else "cpu"
    (planned,) = [p for p in memory.phases(job, device=device) if p.name == "update"]
    own = memory.state(job, mpu.get_pipeline_model_parallel_rank())
    return {
        "parameters": abs(held["parameters"] - own["parameters"]),
        "gradients": abs(held["gradients"] - own["gradients"]),
        # The first rank's share of the state holds no padding, and the plan counts none of it; the last one's does.
        "optimizer state": max(0, own["optimizer state"] - held["optimizer state"] - PADDING, held["optimizer state"]
                               - own["optimizer state"]),
        "gather buffer": abs(gather - planned.terms.get("gather buffer", 0)),
        "total": sum(held.values()) + gather + peak, "planned total": planned.total,
        "working": gather + peak, "planned working": planned.total - sum(planned.terms[name] for name in held),
    }  # fmt: skip


@pytest.mark.parametrize("measured", CASES, indirect=True, ids=str)
def test_memory_is_what_the_plan_says(measured: dict[str, Any]) -> None:
    for name in ("parameters", "gradients", "optimizer state", "gather buffer"):
        assert measured[name] == 0, f"{name}: {measured[name]} bytes off"
    # The requirement is 10 %; what is enumerated tensor by tensor should be far closer.
    assert measured["planned working"] == pytest.approx(measured["working"], rel=0.02)
    assert measured["planned total"] == pytest.approx(measured["total"], rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("measured", [Case(1, f"{model} bfloat16 {recompute}") for model in MODELS
                                      for recompute in ("none", "selective", "full")], indirect=True, ids=str)
def test_memory_of_a_gpu_is_what_the_plan_says(measured: dict[str, Any]) -> None:
    assert measured["planned total"] == pytest.approx(measured["total"], rel=0.1)


def test_chunk_and_piece_are_those_of_the_code() -> None:
    assert memory.CHUNK == linear.CHUNK and memory.PIECE == offload.PIECE
