"""What a step must leave alone: addresses, vocabulary padding, weights around a reference pass or a bad gradient.

And what must leave no trace in it: an earlier use of the trainer, and in a warm start the settings of the run's loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from models import VOCAB, build, make_samples, saved_model

from srpo.batch import MicroBatch, normalizer, pack
from srpo.config import WarmStart
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.megatron import step
from srpo.megatron.step import Trainer
from srpo.warm_start import warm_start

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "dp2": {},
    "dp2-overlap": {"parallel": {"overlap": True}},
}

OTHER_LOSS: dict[str, Any] = {
    "algorithm": dict(aggregate="sequence", kl="k3", kl_coef=0.1, entropy_coef=0.1, tis_cap=2.0, dual_clip=3.0),
    "rollout": dict(temperature=0.5),
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
    cases = {"steady": steady, "reference": reference, "nan": not_finite, "reset": reset, "warm": warmed}
    return cases[case](argument)


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
    with pytest.raises(UserError, match="the gradient's norm is nan, nothing was updated; lower the learning rate"):
        trainer.optimizer_step(1e-2)
    return {"changed": unequal(before, weights(trainer))}


def reset(argument: str) -> dict[str, float]:
    """Two steps, forgotten; then the same as a new trainer does."""
    trainer, batches = start(*argument.split("+"))
    train(trainer, batches)
    first = weights(trainer)
    train(trainer, batches)
    trainer.reset_optimizer()
    trainer.load_hf(trainer.hf_dir)
    train(trainer, batches)
    return {"different": unequal(first, weights(trainer))}


class Numbers:
    """A tokenizer of texts that are token ids."""

    def prompts(self, problems: list[Problem]) -> dict[str, list[int]]:
        return {p.id: [int(word) for word in p.prompt.split()] for p in problems}

    def responses(self, problems: list[Problem]) -> list[list[int]]:
        return [[int(word) for word in (p.response or "").split()] for p in problems]


def warmed(layout: str) -> dict[str, float]:
    rows = [
        dict(id=str(i), domain="math", prompt=f"1 {i}", answer="0", response=" ".join(["7", "5", str(i)][: 1 + i % 3]))
        for i in range(6)
    ]
    data = Path(f"worked-{dist.get_rank()}.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = saved_model("qwen2-tied")
    after = []
    for sections in ({}, OTHER_LOSS):
        trainer = build(path, **LAYOUTS[layout], **sections)
        trainer.load_hf(path)
        ranks, rank = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
        settings = WarmStart(data=[str(data)], steps=3, batch=5)
        warm_start(trainer.config, settings, trainer, Numbers(), rank=rank, ranks=ranks)  # type: ignore[arg-type]
        after.append(weights(trainer))
    trainer.load_hf(path)
    return {"different": unequal(*after), "unchanged": len(after[0]) - unequal(after[0], weights(trainer))}


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


RESET = [Case(2, f"reset/{layout}+{dtype}") for layout in LAYOUTS for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize("measured", RESET, ids=str, indirect=True)
def test_a_reset_optimizer_is_a_new_one(measured: dict[str, float]) -> None:
    assert measured == {"different": 0}


@pytest.mark.parametrize("measured", [Case(2, f"warm/{layout}") for layout in LAYOUTS], ids=str, indirect=True)
def test_the_loss_of_the_run_takes_no_part_in_a_warm_start(measured: dict[str, float]) -> None:
    assert measured == {"different": 0, "unchanged": 0}


@pytest.mark.parametrize("environment", [{"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}, {"LOCAL_RANK": "2"}])
def test_more_ranks_than_gpus_are_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with mock.patch.object(torch.cuda, "device_count", lambda: 2), pytest.raises(UserError) as error:
        step._local_device()
    assert str(error.value).startswith("3 ranks were started on this machine")
    assert str(error.value).endswith("there are 2; start them with --nproc-per-node 2")
