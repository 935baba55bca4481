"""What a step must leave alone: addresses, vocabulary padding, weights around a reference pass or a bad gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import Case
from megatron.core import parallel_state as mpu
from models import VOCAB, build, make_samples, saved_model

from srpo.batch import MicroBatch, normalizer, pack
from srpo.megatron.step import Trainer

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "dp2": {},
    "dp2-overlap": {"parallel": {"overlap": True}},
}


def start(layout: str, dtype: str = "float32") -> tuple[Trainer, list[MicroBatch]]:
    path = saved_model("qwen2-tied")
    trainer = build(
        path, model=dict(path=str(path), dtype=dtype), optimizer=dict(weight_decay=0.1), **LAYOUTS[layout]
    )  # fmt: skip
    trainer.load_hf(path)
    samples, advantages = make_samples(8)
    ranks, rank = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
    return trainer, pack(samples, advantages, range(8), sequences=2, rank=rank, ranks=ranks)


def train(trainer: Trainer, batches: list[MicroBatch]) -> None:
    samples, _ = make_samples(8)
    trainer.forward_backward(batches, normalizer(samples, range(8), "token", 1))
    trainer.optimizer_step(1e-2)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    trainer.wait_parameters()
    return [p.detach().clone() for p in trainer.model.parameters()]


def unequal(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return float(sum(not torch.equal(x, y) for x, y in zip(a, b, strict=True)))


def measure(name: str) -> dict[str, float]:
    case, argument = name.split("/")
    return {"steady": steady, "reference": reference, "nan": not_finite}[case](argument)


def steady(argument: str) -> dict[str, float]:
    trainer, batches = start(*argument.split("+"))
    addresses = [p.data_ptr() for p in trainer.model.parameters()]
    before = weights(trainer)
    for _ in range(3):
        train(trainer, batches)
    after = weights(trainer)
    last_shard = mpu.get_tensor_model_parallel_rank() == trainer.config.parallel.tensor - 1
    vocab = [p for n, p in trainer.named_parameters() if "embedding" in n or "output_layer" in n]
    return {
        "moved": float(addresses != [p.data_ptr() for p in trainer.model.parameters()]),
        "unchanged": len(before) - unequal(before, after),
        "padding": float(sum(p[VOCAB - 256 :].abs().sum() for p in vocab) if last_shard else 0),
    }


def reference(layout: str) -> dict[str, float]:
    trainer, batches = start(layout)
    at_first = trainer.logprobs(batches) or []
    trainer.snapshot_reference()
    train(trainer, batches)
    trained, logprobs = weights(trainer), trainer.logprobs(batches) or []
    with trainer.reference():
        from_reference = trainer.logprobs(batches) or []
    return {
        "reference": unequal(at_first, from_reference),
        "same": len(logprobs) - unequal(at_first, logprobs),
        "restored": unequal(trained, weights(trainer)) + unequal(logprobs, trainer.logprobs(batches) or []),
    }


def not_finite(layout: str) -> dict[str, float]:
    trainer, batches = start(layout)
    before = weights(trainer)
    if mpu.get_data_parallel_rank() == 0:
        batches[0].advantages[0] = float("nan")
    trainer.forward_backward(batches, 1)
    with pytest.raises(FloatingPointError, match="the gradient's norm is nan; nothing was updated"):
        trainer.optimizer_step(1e-2)
    return {"changed": unequal(before, weights(trainer))}


STEADY = [Case(2, f"steady/{layout}+{dtype}") for layout in LAYOUTS for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize("measured", STEADY, ids=str, indirect=True)
def test_training_moves_values_only(measured: dict[str, float]) -> None:
    assert measured == {"moved": 0, "unchanged": 0, "padding": 0}


@pytest.mark.parametrize("measured", [Case(2, f"reference/{layout}") for layout in LAYOUTS], ids=str, indirect=True)
def test_a_reference_pass_leaves_no_trace(measured: dict[str, float]) -> None:
    assert measured == {"reference": 0, "same": 0, "restored": 0}


@pytest.mark.parametrize("measured", [Case(2, f"nan/{layout}") for layout in LAYOUTS], ids=str, indirect=True)
def test_a_gradient_that_is_not_finite_updates_nothing(measured: dict[str, float]) -> None:
    assert measured == {"changed": 0}
