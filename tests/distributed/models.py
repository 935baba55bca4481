"""Tiny random models, a trainer for them, a batch, and the gradients that the trainer computes."""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch.distributed import distributed_c10d
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from srpo.batch import MicroBatch, Sample
from srpo.config import Config
from srpo.megatron import step
from srpo.megatron.convert import Shards
from srpo.megatron.step import Trainer, init_distributed

VOCAB = 197  # no multiple of anything: the padding is always there
SHAPE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=8,
             num_key_value_heads=4, max_position_embeddings=256)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip

MODELS = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "qwen2-tied": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=False),  # heads wider than the hidden size
    "qwen3-tied": lambda: Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
}


def make_model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same random weights in every process; biases and norms are random too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[kind](), dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def config(path: Path, **sections: Any) -> Config:
    """A run's configuration with these sections; whatever the trainer does not read is filled in."""
    base: dict[str, Any] = dict(
        run="unused",
        model=dict(path=str(path), dtype="float32"),
        data=dict(train=["unused"]),
        stages=[dict(name="unused", domains=["math"], until="steps", steps=1)],
    )
    return Config.model_validate(base | sections)


_kept: dict[tuple[int, int], dict[str, Any]] = {}


def regroup(tensor: int = 1, pipeline: int = 1) -> None:
    """Join the process groups of a layout. Those that earlier cases made stay: to make them takes longer than a case.
    Megatron keeps them in its module's variables."""
    if mpu.is_initialized():
        sizes = mpu.get_tensor_model_parallel_world_size(), mpu.get_pipeline_model_parallel_world_size()
        _kept[sizes] = {n: v for n, v in vars(mpu).items() if re.match("_[A-Za-z]", n) and not callable(v)}
        if sizes == (tensor, pipeline):
            return
    mpu.destroy_model_parallel()  # which sets those variables to None
    if (tensor, pipeline) in _kept:
        vars(mpu).update(_kept[tensor, pipeline])
    else:
        init_distributed(tensor, pipeline)


def ungroup() -> None:
    """End the groups of all layouts."""
    _kept.clear()
    mpu.destroy_model_parallel()
    gc.collect()
    if dist.is_initialized():
        for group in list(distributed_c10d._world.pg_map):
            if group != dist.group.WORLD:
                dist.destroy_process_group(group)


def build(path: Path, tensor: int = 1, pipeline: int = 1, **sections: Any) -> Trainer:
    """A trainer without weights, in new process groups of this layout."""
    regroup(tensor, pipeline)
    parallel = dict(tensor=tensor, pipeline=pipeline) | sections.pop("parallel", {})
    return Trainer(config(path, parallel=parallel, **sections), path)


def saved_model(kind: str) -> Path:
    """A Hugging Face directory of make_model(kind), that all cases of a file share."""
    path = Path("models", kind)
    if dist.get_rank() == 0 and not path.exists():
        make_model(kind).save_pretrained(path)
    dist.barrier()
    return path


def make_samples(count: int) -> tuple[list[Sample], list[float]]:
    """Random responses of many lengths, and an advantage for each."""
    g = torch.Generator().manual_seed(1)

    def tokens(n: int) -> list[int]:
        return torch.randint(0, VOCAB, (n,), generator=g).tolist()

    samples = [Sample(prompt_tokens=tokens(2 + i % 5), tokens=tokens(3 + (7 * i) % 11)) for i in range(count)]
    return samples, torch.randn(count, generator=g).tolist()


def gradients(trainer: Trainer, batches: Sequence[MicroBatch], normalizer: float) -> dict[str, torch.Tensor]:
    """One forward and backward pass; the gradient of all ranks as a Hugging Face state dict."""
    scatter = trainer.megatron.finalize_model_grads_func
    trainer.megatron.finalize_model_grads_func = lambda *args, **kwargs: step._finalize(
        *args, **kwargs | {"force_all_reduce": True}  # the distributed optimizer needs only a part on each rank
    )
    trainer.forward_backward(batches, normalizer)
    trainer.megatron.finalize_model_grads_func = scatter
    shards = copy.copy(trainer.shards)
    shards.parameters = {name: p.main_grad for name, p in trainer.shards.parameters.items()}
    return full_tensors(shards)


def full_tensors(shards: Shards) -> dict[str, torch.Tensor]:
    """The whole model on every rank, by Hugging Face's names."""
    return {e.name: shards.full(e).clone() for e in shards.entries() if not e.duplicate}


def relative(x: torch.Tensor, y: torch.Tensor) -> float:
    """Largest difference in units of the largest value."""
    return float((x - y).abs().max() / y.abs().max())
