"""Logits, every gradient and an optimizer step against transformers, for every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from models import MODELS, build, full_tensors, gradients, make_model, make_samples, relative, saved_model
from transformers import PreTrainedModel

from srpo.batch import MicroBatch, Sample, normalizer, pack
from srpo.megatron.step import Trainer

LR = 1e-3
VARIANTS = ["llama-tied", "qwen2", "qwen3"]  # for options and products of layouts that every model has been through
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "tp1": {},
        "tp1-padded": {"padded": True, "models": VARIANTS},
        "tp1-selective": {"recompute": "selective", "models": VARIANTS},
    },
    2: {
        "tp2": {"tensor": 2},
        "tp2-sequence": {"tensor": 2, "sequence": True},
        "tp2-sequence-padded": {"tensor": 2, "sequence": True, "padded": True, "models": VARIANTS},
        "tp2-sequence-full": {"tensor": 2, "sequence": True, "recompute": "full", "models": VARIANTS},
        "tp2-overlap": {"tensor": 2, "overlap": True, "models": VARIANTS},
        "pp2": {"pipeline": 2},
        "pp2-padded": {"pipeline": 2, "padded": True, "models": VARIANTS},
        "pp2-full": {"pipeline": 2, "recompute": "full", "models": VARIANTS},
        "dp2": {},
        "dp2-overlap": {"overlap": True, "models": VARIANTS},
    },
    4: {
        "tp2-pp2": {"tensor": 2, "pipeline": 2, "models": VARIANTS},
        "tp2-pp2-sequence": {"tensor": 2, "pipeline": 2, "sequence": True, "recompute": "selective",
                             "models": VARIANTS},
        "tp4-sequence": {"tensor": 4, "sequence": True, "models": VARIANTS},
        "tp2-dp2-sequence": {"tensor": 2, "sequence": True, "models": VARIANTS},
        "pp2-dp2-overlap": {"pipeline": 2, "overlap": True, "models": VARIANTS},
    },
}


CASES = [
    Case(ranks, f"{name}/{model}")
    for ranks, layouts in LAYOUTS.items()
    for name, layout in layouts.items()
    for model in layout.get("models", MODELS)
]


def logits(trainer: Trainer, batches: list[MicroBatch]) -> list[torch.Tensor]:
    """[T, V] of each micro-batch, on the last stage."""

    def head(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        shard = hidden @ trainer.model.output_weight().T
        parts = [torch.empty_like(shard) for _ in range(mpu.get_tensor_model_parallel_world_size())]
        dist.all_gather(parts, shard, group=mpu.get_tensor_model_parallel_group())
        return hidden.new_zeros(()), torch.cat(parts, dim=1)[:, : trainer.hf.vocab_size]

    with torch.no_grad():
        return trainer.run(batches, head, forward_only=True)


def expected_loss(model: PreTrainedModel, samples: list[Sample], advantages: list[float]) -> torch.Tensor:
    total = torch.zeros((), dtype=model.dtype)
    for sample, advantage in zip(samples, advantages, strict=True):
        ids = torch.tensor([sample.prompt_tokens + sample.tokens])
        logprobs = model(ids).logits[0, len(sample.prompt_tokens) - 1 : -1].log_softmax(-1)
        total = total - advantage * logprobs.gather(1, torch.tensor(sample.tokens)[:, None]).sum()
    return total / normalizer(samples, range(len(samples)), "token", 1)


def measure(name: str) -> dict[str, float]:
    layout_name, kind = name.split("/")
    layout = dict(LAYOUTS[dist.get_world_size()][layout_name])
    padded = layout.pop("padded", False)
    layout.pop("models", None)
    reference = make_model(kind)
    path = saved_model(kind)
    trainer = build(
        path, layout.pop("tensor", 1), layout.pop("pipeline", 1), parallel=layout,
        optimizer=dict(weight_decay=0.01, eps=1e-4),  # eps: no update is the sign of a rounding error
    )  # fmt: skip
    trainer.load_hf(path)
    samples, advantages = make_samples(8)
    batches = pack(
        samples, advantages, range(8), sequences=1 if padded else 3, rank=mpu.get_data_parallel_rank(),
        ranks=mpu.get_data_parallel_world_size(), multiple=24 if padded else trainer.config.parallel.tensor,
    )  # fmt: skip
    measured = {}

    for out, batch in zip(logits(trainer, batches), batches, strict=False):  # none before the last stage
        ends = batch.cu_seqlens.tolist()
        with torch.no_grad():
            expected = [reference(batch.tokens[None, a:b]).logits[0] for a, b in zip(ends, ends[1:], strict=False)]
        measured["logits"] = max(measured.get("logits", 0.0), relative(out, torch.cat(expected)))

    expected_loss(reference, samples, advantages).backward()
    if not trainer.config.parallel.overlap:  # whose hooks scatter the gradients
        found = gradients(trainer, batches, normalizer(samples, range(8), "token", 1))
        assert found.keys() == dict(reference.named_parameters()).keys()
        measured["gradients"] = max(relative(found[n], p.grad) for n, p in reference.named_parameters())

    trainer.forward_backward(batches, normalizer(samples, range(8), "token", 1))
    matrices, vectors = ([p for p in reference.parameters() if (p.dim() > 1) == m] for m in (True, False))
    groups = [dict(params=matrices, weight_decay=0.01), dict(params=vectors, weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-4)
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    adamw.step()
    measured["norm"] = abs(trainer.optimizer_step(LR) / float(norm) - 1)
    trainer.wait_parameters()
    updated = full_tensors(trainer.shards)
    measured["update"] = max(float((updated[n] - p).abs().max()) / LR for n, p in reference.named_parameters())
    return measured


@pytest.mark.parametrize("measured", CASES, ids=str, indirect=True)
def test_matches_transformers(measured: dict[str, float]) -> None:
    assert measured["logits"] < 1e-5
    assert measured.get("gradients", 0) < 1e-5  # none with overlap, whose update shows them
    assert measured["norm"] < 1e-5
    assert measured["update"] < 1e-3  # of the learning rate
