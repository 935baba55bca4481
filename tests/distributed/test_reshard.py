"""Any training layout to any rollout layout over the same ranks: after a change of the trainer's weights and a sync,
vLLM's parameters are bit for bit what vLLM itself loads from an export. vLLM's models are built stage by stage, without
an engine around them: on CPU it cannot generate with several pipeline stages."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import torch.distributed as dist
from harness import Case
from models import SHAPE, make_model, saved_model
from transformers import LlamaConfig, Qwen2Config

from benchmarks.timing import peak_memory
from srpo.megatron.step import Trainer

MODELS = models.MODELS | {
    "two-heads": lambda: Qwen2Config(**SHAPE | {"num_key_value_heads": 2}, tie_word_embeddings=True),
    "three": lambda: LlamaConfig(vocab_size=190, hidden_size=48, intermediate_size=96, num_hidden_layers=6,
                                 num_attention_heads=12, num_key_value_heads=3, max_position_embeddings=256,
                                 tie_word_embeddings=True),
}
KINDS = {1: ["qwen2"], 2: ["qwen2", "two-heads", "qwen3-tied", "llama"], 3: ["three"],
         4: ["two-heads", "qwen2", "llama", "qwen3", "qwen2-tied"]}
ACROSS_NODES = ["1x4->1x1/qwen2/2", "1x4->2x1/llama/2", "2x2->1x1/two-heads/2", "4x1->1x1/qwen3/2"]
"""Two nodes of two ranks: what both ranks of a node lack crosses once."""


def layouts(ranks: int) -> list[tuple[int, int]]:
    return [(t, p) for t in range(1, ranks + 1) for p in range(1, ranks + 1) if ranks % (t * p) == 0]


def cases(ranks: int) -> Iterator[Any]:
    """Every pair of layouts; in the fast tests with one model, each in its turn, and not over three ranks, which
    tests/unit/rollout/test_reshard_plan.py has."""
    number = 0
    for train in layouts(ranks):
        for rollout in layouts(ranks):
            kinds = [k for k in KINDS[ranks] if train[0] <= MODELS[k]().num_key_value_heads]
            for i, kind in enumerate(kinds):
                name = f"{train[0]}x{train[1]}->{rollout[0]}x{rollout[1]}/{kind}/{ranks}"
                slow = () if i == number % len(kinds) and ranks != 3 else pytest.mark.slow
                yield pytest.param(Case(ranks, name), marks=slow)
            number += 1


def measure(name: str) -> dict[str, Any]:
    models.MODELS = MODELS  # on this rank; other files have a case for each of their models
    layouts, kind, node = name.split("/")
    train, rollout = ([int(n) for n in each.split("x")] for each in layouts.split("->"))
    trainer, before, after = trained(*train, kind)
    trainer.load_hf(before)
    trainer.config = trainer.config.model_copy(update={"rollout": trainer.config.rollout.model_copy(
        update={"tensor": rollout[0], "pipeline": rollout[1]})})
    with vllm_groups(before, *rollout) as config, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", node)
        from srpo.rollout.weights import SharedWeights

        weights = SharedWeights(trainer)
        ours = dict(vllm_model(config(before, weights.load_format)).named_parameters())
        theirs = dict(vllm_model(config(after, "safetensors")).named_parameters())
        stale = [n for n in theirs if not torch.equal(ours[n], theirs[n])]
        trainer.load_hf(after)
        staged = peak_memory(weights.sync, trainer.device)
        wrong = [n for n in theirs if not torch.equal(ours[n], theirs[n])]
        weights.verify()
    relayed = sum(m.relayed for moves in weights.plan.rounds for m in moves)
    return {"parameters": len(theirs), "stale": len(stale), "wrong": " ".join(wrong), "moved": weights.moved_bytes,
            "off": abs(weights.moved_bytes - weights.plan.needed[weights.rank]), "staged": staged,
            "largest": weights.plan.largest, "relayed": relayed}


@functools.lru_cache(1)
def trained(tensor: int, pipeline: int, kind: str) -> tuple[Trainer, Path, Path]:
    """A trainer, a model to begin with, and the export of other weights."""
    before = saved_model(kind)
    trainer = models.build(before, tensor, pipeline)
    changed, after = Path("changed", kind), Path("exported", kind)
    if dist.get_rank() == 0:
        model = make_model(kind)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5).add_(0.1 * torch.randn_like(p))
        model.save_pretrained(changed)
    dist.barrier()
    trainer.load_hf(changed)
    trainer.export_hf(after)
    return trainer, before, after


@contextmanager
def vllm_groups(path: Path, tensor: int, pipeline: int) -> Iterator[Any]:
    """vLLM's process groups, as its worker makes them; gives a function from a directory to a vLLM config."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR",
                   "VLLM_DIST_IDENT": os.environ["TORCHELASTIC_RUN_ID"]}  # in the names of shared memory
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs

    def config(path: Path, load_format: str) -> Any:
        return EngineArgs(str(path), load_format=load_format, dtype="float32", skip_tokenizer_init=True,
                          tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, enforce_eager=True,
                          distributed_executor_backend="external_launcher", max_model_len=64).create_engine_config()

    with set_current_vllm_config(config(path, "auto")):
        parallel_state.init_distributed_environment(backend="gloo")
        parallel_state.initialize_model_parallel(tensor, pipeline, backend="gloo")
        try:
            yield config
        finally:
            parallel_state.destroy_model_parallel()
            parallel_state.get_world_group().destroy()
            parallel_state._WORLD = None


def vllm_model(config: Any) -> torch.nn.Module:
    """This rank's model, with weights as its loader leaves them, before vLLM packs them for oneDNN."""
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_default_torch_dtype(config.model_config.dtype):
        model = initialize_model(vllm_config=config, model_config=config.model_config)
        get_model_loader(config.load_config).load_weights(model, config.model_config)
    return model


@pytest.mark.parametrize("measured", [case for ranks in (1, 2, 3, 4) for case in cases(ranks)], indirect=True, ids=str)
def test_every_layout_to_every_other(measured: dict[str, Any]) -> None:
    check(measured)


@pytest.mark.parametrize("measured", [Case(4, name) for name in ACROSS_NODES], indirect=True, ids=str)
def test_across_nodes(measured: dict[str, Any]) -> None:
    check(measured)
    assert measured["relayed"] > 0


def check(measured: dict[str, Any]) -> None:
    """Numbers are the largest of all ranks'."""
    assert measured["stale"] == measured["parameters"] > 5
    assert measured["wrong"] == ""
    assert measured["off"] == 0  # bytes that arrived, against those that the rank needed and did not have
    assert measured["staged"] <= measured["largest"]
    assert (measured["moved"] == 0) == (measured["largest"] == 0)
