"""Optimizer state lives on the host and passes through the device in pieces, and gradients leave: training goes on as
if they had stayed, and whoever holds a tensor of them, or the parameters' addresses, goes on too. On a GPU the copies
are asynchronous, through page-locked memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from models import build, make_samples, saved_model

from srpo.batch import MicroBatch, normalizer, pack
from srpo.megatron.checkpoint import Checkpointer
from srpo.megatron.step import Trainer

LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"tp1": {}},
    2: {
        "tp2-sequence": {"tensor": 2, "sequence": True},
        "pp2": {"pipeline": 2},
        "dp2": {},
        "dp2-overlap": {"overlap": True},
    },
}
NAMES = [(r, f"{name}+{dtype}") for r, found in LAYOUTS.items() for name in found for dtype in ("float32", "bfloat16")]


PIECE = 20_000
"""Instead of a gibibyte: a few parameters of the small models."""


def start(name: str, offload: bool = True) -> tuple[Trainer, list[MicroBatch]]:
    layout, dtype = name.split("+")
    path = saved_model("qwen2-tied")
    sizes = dict(LAYOUTS[dist.get_world_size()][layout], offload=offload)
    trainer = build(
        path, sizes.pop("tensor", 1), sizes.pop("pipeline", 1), parallel=sizes, model=dict(path=str(path), dtype=dtype)
    )  # fmt: skip
    trainer.load_hf(path)
    samples, advantages = make_samples(8)
    batches = pack(
        samples, advantages, range(8), sequences=2, rank=mpu.get_data_parallel_rank(),
        ranks=mpu.get_data_parallel_world_size(), multiple=trainer.config.parallel.tensor,
    )  # fmt: skip
    return trainer, batches


def train(trainer: Trainer, batches: list[MicroBatch]) -> float:
    samples, _ = make_samples(8)
    trainer.forward_backward(batches, normalizer(samples, range(8), "token", 1))
    return trainer.optimizer_step(1e-2)


def state(trainer: Trainer) -> list[torch.Tensor]:
    """Copies of all that training goes on from: parameters, main parameters, moments, step counts."""
    trainer.wait_parameters()
    trainer.reload()
    tensors = list(trainer.model.parameters())
    for group in trainer.optimizer.param_groups:
        for p in group["params"]:
            tensors += [p, *(t for _, t in sorted(trainer.optimizer.optimizer.state[p].items()))]
    return [t.detach().clone() for t in tensors]


def held(trainer: Trainer) -> list[torch.Tensor]:
    """The tensors through which Megatron, the parameters and the optimizer reach gradients and state."""
    (optimizer,) = trainer.optimizer.chained_optimizers
    tensors = [t for b in trainer.ddp.buffers for t in (b.grad_data, *(bucket.grad_data for bucket in b.buckets))]
    tensors += [p.main_grad for p in trainer.model.parameters()]
    for group in trainer.optimizer.param_groups:
        for p in group["params"]:
            tensors += [t for t in (p.grad, *optimizer.optimizer.state[p].values()) if t is not None and t.dim()]
    return tensors + [p for group in optimizer.shard_fp32_from_float16_groups for p in group]


def leave(trainer: Trainer) -> None:
    """Offload, and let others use the memory."""
    sizes = [t.untyped_storage().nbytes() for t in held(trainer)]
    trainer.offload()
    for tensor in [torch.empty(size // 4, device=trainer.device) for size in sizes]:
        tensor.fill_(torch.nan)


def unequal(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return float(sum(not torch.equal(x, y) for x, y in zip(a, b, strict=True)))


def measure(name: str) -> dict[str, float]:
    case, argument = name.split("/")
    with mock.patch("srpo.megatron.offload.PIECE", PIECE):
        by_name = {"undisturbed": undisturbed, "place": place, "save": save, "count": count, "device": device}
        return by_name[case](argument)


def undisturbed(name: str) -> dict[str, float]:
    """Three steps with everything away between them, against three without."""
    trainer, batches = start(name, offload=False)
    norms = [train(trainer, batches) for _ in range(3)]
    logprobs, expected = trainer.logprobs(batches) or [], state(trainer)

    trainer, batches = start(name)
    found_norms = []
    for _ in range(3):
        leave(trainer)  # the first time there are no moments yet
        found_norms.append(train(trainer, batches))
    leave(trainer)
    trainer.offload()  # no more happens
    found = trainer.logprobs(batches) or []  # needs the parameters alone, as vLLM does
    return {
        "norms": float(norms != found_norms),
        "logprobs": unequal(logprobs, found),
        "state": unequal(expected, state(trainer)),
    }


def place(name: str) -> dict[str, float]:
    """Where things are: at rest, after they have been away, and in the middle of a step."""
    trainer, batches = start(name)
    train(trainer, batches)
    offload = trainer._offload
    assert offload

    def back() -> list[torch.Tensor]:
        trainer.reload()
        offload.restore_gradients()
        return held(trainer)

    parameters = [p.data_ptr() for p in trainer.model.parameters()]
    tensors = back()
    storages = [(t.untyped_storage()._cdata, t.untyped_storage().nbytes()) for t in tensors]
    left = 0
    for _ in range(2):
        trainer.offload()
        left += sum(t.untyped_storage().nbytes() for t in tensors)
        replaced = sum(a is not b for a, b in zip(tensors, back(), strict=True))

    present: list[int] = []
    inner = offload.optimizer.optimizer
    hook = inner.register_step_pre_hook(lambda *_: present.append(on_device(trainer)))
    train(trainer, batches)
    hook.remove()
    left += on_device(trainer)
    back()
    return {
        "parameters": float(parameters != [p.data_ptr() for p in trainer.model.parameters()]),
        "replaced": float(replaced),
        "emptied": float(storages != [(t.untyped_storage()._cdata, t.untyped_storage().nbytes()) for t in tensors]),
        "left": float(left),
        "whole": float(max(present) > max(PIECE, *map(offload._slot_bytes, offload.parameters))),
        "in one piece": float(len(present) < 3),
        "forked": float("dc" not in flags(offload.host)),
    }


def flags(tensor: torch.Tensor) -> list[str]:
    """Of the mapping that a host tensor begins in, see proc(5)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(x, 16) for x in first.split("-"))
            inside = begin <= tensor.data_ptr() < end
        elif inside and first == "VmFlags:":
            return rest
    return []


def on_device(trainer: Trainer) -> int:
    """Bytes of the optimizer's state."""
    (optimizer,) = trainer.optimizer.chained_optimizers
    tensors = [t for s in optimizer.optimizer.state.values() for t in s.values() if t.dim()]
    tensors += [p for group in optimizer.shard_fp32_from_float16_groups for p in group]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def save(name: str) -> dict[str, float]:
    """A checkpoint taken while the state is away holds it."""
    trainer, batches = start(name)
    train(trainer, batches)
    expected = state(trainer)
    directory = f"checkpoints-{name}"
    trainer.offload()
    checkpoints = Checkpointer(directory, keep=1)
    checkpoints.save(1, trainer, {}, blocking=True)
    trainer, batches = start(name)
    trainer.offload()
    assert Checkpointer(directory, keep=1).load(trainer)
    return {"different": unequal(expected, state(trainer))}


def count(name: str) -> dict[str, float]:
    """Transformer Engine's and Apex's Adam, which Megatron takes where they are installed, count steps in their groups,
    in those with parameters."""
    trainer, batches = start(name)
    assert trainer._offload
    inner = trainer._offload.optimizer.optimizer
    step = inner.step

    def counting() -> None:
        for group in inner.param_groups:
            if group["params"]:
                group["step"] = group.get("step", 0) + 1
        step()

    with mock.patch.object(inner, "step", counting):
        train(trainer, batches)
        train(trainer, batches)
    return {"groups": float(len(inner.param_groups)),
            "different": float(sum(group.get("step") != 2 for group in inner.param_groups))}


def device(name: str) -> dict[str, float]:
    trainer, batches = start(name)
    train(trainer, batches)
    expected = state(trainer)
    offload = trainer._offload
    assert offload and offload.stream
    size = offload.host.numel()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda._sleep(10**9)  # about half a second, for which the copies have to wait
    trainer.offload()
    waited = int(offload.stream.query())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    freed = before - torch.cuda.memory_allocated()
    torch.cuda._sleep(10**9)
    trainer.reload()
    waited += offload.stream.query()
    return {
        "waited": float(waited),
        "pageable": float(not offload.host.is_pinned()),
        "kept": float(freed < size),
        "different": unequal(expected, state(trainer)),
    }


def cases(case: str) -> list[Any]:
    """In the fast tests each layout with one of the types, in turn."""
    return [pytest.param(Case(ranks, f"{case}/{name}"), marks=pytest.mark.slow if (i // 2 + i) % 2 else ())
            for i, (ranks, name) in enumerate(NAMES)]


@pytest.mark.parametrize("measured", [Case(r, f"undisturbed/{name}") for r, name in NAMES], ids=str, indirect=True)
def test_training_goes_on_as_if_nothing_had_left(measured: dict[str, float]) -> None:
    assert measured == {"norms": 0, "logprobs": 0, "state": 0}


@pytest.mark.parametrize("measured", cases("place"), ids=str, indirect=True)
def test_memory_goes_and_what_points_to_it_stays(measured: dict[str, float]) -> None:
    nothing = {"parameters": 0, "replaced": 0, "emptied": 0, "left": 0, "whole": 0, "in one piece": 0, "forked": 0}
    assert measured == nothing


@pytest.mark.parametrize("measured", cases("save"), ids=str, indirect=True)
def test_a_checkpoint_holds_the_state_wherever_it_is(measured: dict[str, float]) -> None:
    assert measured == {"different": 0}


@pytest.mark.parametrize("measured", [Case(1, "count/tp1+bfloat16")], ids=str, indirect=True)
def test_groups_that_count_their_steps_all_do(measured: dict[str, float]) -> None:
    assert measured == {"groups": 2, "different": 0}


@pytest.mark.gpu
@pytest.mark.parametrize("measured", [Case(1, "device/tp1+bfloat16")], ids=str, indirect=True)
def test_copies_on_a_gpu_are_asynchronous_and_page_locked(measured: dict[str, float]) -> None:
    assert measured == {"waited": 0, "pageable": 0, "kept": 0, "different": 0}
