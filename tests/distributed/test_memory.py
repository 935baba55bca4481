"""Activations: what recomputing them saves, and that it changes no bit; and that they grow with the tokens, not with
their square: a response of 32k tokens is one micro-batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from models import build
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.timing import peak_memory
from srpo.batch import MicroBatch, Sample, pack
from srpo.megatron.step import Trainer

SHAPE = dict(vocab_size=197, hidden_size=32, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=2**16, tie_word_embeddings=True)  # fmt: skip
SETTINGS = ("none", "selective", "full")
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {},
    "tp2": {"tensor": 2},
    "tp2-sequence": {"tensor": 2, "sequence": True},
    "pp2": {"pipeline": 2},
    "dp2-overlap": {"overlap": True},
}


def start(layout: str, recompute: str) -> Trainer:
    path = Path("model")
    if dist.get_rank() == 0 and not path.exists():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE), dtype=torch.float32).save_pretrained(path)
    dist.barrier()
    sizes = dict(LAYOUTS[layout], recompute=recompute)
    trainer = build(path, sizes.pop("tensor", 1), sizes.pop("pipeline", 1), parallel=sizes)
    trainer.load_hf(path)
    return trainer


def micro_batches(trainer: Trainer, *lengths: int) -> list[MicroBatch]:
    """One of responses of these lengths."""
    g = np.random.default_rng(0)
    samples = [Sample(*(g.integers(0, 197, n).astype(np.int32) for n in (16, length))) for length in lengths]
    advantages = g.standard_normal(len(samples)).tolist() * mpu.get_data_parallel_world_size()
    samples *= mpu.get_data_parallel_world_size()
    return pack(
        samples, advantages, range(len(samples)), sequences=len(lengths), rank=mpu.get_data_parallel_rank(),
        ranks=mpu.get_data_parallel_world_size(), multiple=trainer.config.parallel.tensor,
    )  # fmt: skip


def peak(trainer: Trainer, batches: list[MicroBatch]) -> int:
    return peak_memory(lambda: trainer.forward_backward(batches, 1000), trainer.device)


def measure(name: str) -> dict[str, float]:
    case, argument = name.split("/")
    return {"recompute": recompute, "length": length}[case](argument)


def recompute(layout: str) -> dict[str, float]:
    """Peaks over that of no recomputation, and how many tensors of gradients differ from those without."""
    measured: dict[str, float] = {}
    for setting in SETTINGS:
        trainer = start(layout, setting)
        batches = micro_batches(trainer, 700, 300, 20)
        trainer.forward_backward(batches, 1000)  # what is allocated once
        found = peak(trainer, batches)
        gradients = [p.main_grad.clone() for p in trainer.model.parameters()]
        if setting == "none":
            most, expected = found, gradients
        measured[setting] = found / most
        measured[f"{setting} differs"] = sum(not torch.equal(a, b) for a, b in zip(expected, gradients, strict=True))
    return measured


def length(argument: str) -> dict[str, float]:
    """Peaks of one response, a token, at a length and over that at half of it, with everything that saves memory; and
    what the float32 scores of one head would take."""
    peaks = {}
    for tokens in (int(argument) // 2, int(argument)):
        trainer = start("tp2-sequence", "full")
        peaks[tokens] = peak(trainer, micro_batches(trainer, tokens)) / tokens
        norm = trainer.optimizer_step(1e-4)
    return {
        "growth": peaks[tokens] / peaks[tokens // 2],
        "bytes a token": peaks[tokens],
        "scores": 4 * tokens,
        "norm": norm,
    }


RECOMPUTE = [Case(1, "recompute/tp1"), *(Case(2, f"recompute/{layout}") for layout in LAYOUTS if layout != "tp1")]


@pytest.mark.parametrize("measured", RECOMPUTE, ids=str, indirect=True)
def test_recomputing_saves_activations_and_changes_no_gradient(measured: dict[str, float]) -> None:
    assert all(measured[f"{setting} differs"] == 0 for setting in SETTINGS)
    assert measured["full"] < measured["selective"] < 0.8


LENGTHS = [Case(2, "length/4096"), pytest.param(Case(2, "length/32768"), marks=pytest.mark.slow)]


@pytest.mark.parametrize("measured", LENGTHS, ids=str, indirect=True)
def test_memory_grows_with_the_tokens_alone(measured: dict[str, float]) -> None:
    assert measured["norm"] > 0
    assert measured["growth"] < 1.4  # 2 with the square; gloo keeps a tensor more or less until it is sent
    assert measured["bytes a token"] < measured["scores"]
