"""What bench_tiles tries: candidates for each field of srpo_kernels.tiles.Tiles, and the calls that they concern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from srpo_kernels import tiles, triton_advantage, triton_ops
from srpo_kernels.tiles import Block, Share, Tile
from torch import Tensor

from benchmarks import cuda_tile
from benchmarks.cuda_tile import CudaTile
from benchmarks.inputs import DTYPES, GROUP

WIDE, SMALL = 152064, 49152
TEMPERATURE = 0.8
CUDA = "cuda"
Value = Tile | Share | Block | CudaTile


class Problem:
    """Tensors of one case. `logits` stay, `working` is written over. `library`: the CUDA kernels, with some tile."""

    library: cuda_tile.Library

    def __init__(self, dtype: str, rows: int, vocab: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, scale: float = 1.0, to: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=to, device=device).normal_(0, scale, generator=generator)

        self.logits = normal(rows, vocab, scale=3, to=DTYPES[dtype])
        self.working = self.logits.clone()
        self.tokens = torch.randint(vocab, (rows,), device=device, generator=generator)
        self.advantages = normal(rows)
        self.weights = torch.ones(rows, device=device)
        self.statistics = triton_ops.logprob_statistics(self.logits, self.tokens, TEMPERATURE, vocab)
        self.grad = normal(rows, 4) / self.statistics[:, 1:2]
        self.offsets = torch.arange(0, rows + 1, GROUP, device=device)

    def restore(self) -> None:
        self.working.copy_(self.logits)


def statistics(x: Problem) -> tuple[Tensor, ...]:
    return (triton_ops.logprob_statistics(x.logits, x.tokens, TEMPERATURE, x.logits.shape[1]),)


def gradient(x: Problem) -> tuple[Tensor, ...]:
    triton_ops.logprob_statistics_backward_(
        x.grad, x.statistics, x.working, x.tokens, TEMPERATURE, x.working.shape[1])
    return (x.working,)


def _loss_arguments(x: Problem) -> tuple[Any, ...]:
    """On-policy, as DAPO: no row is clipped, so that every one has a gradient."""
    return (x.tokens, x.advantages, x.weights, None, None, None, TEMPERATURE, x.logits.shape[1], 0.2, 0.28,
            float("inf"), False, 3, 0.0, 0.0, float("inf"))


def loss_forward(x: Problem) -> tuple[Tensor, ...]:
    return triton_ops.policy_loss_rows(x.logits, *_loss_arguments(x), False)[:2]


def loss(x: Problem) -> tuple[Tensor, ...]:
    return *triton_ops.policy_loss_rows_(x.working, *_loss_arguments(x)), x.working


def scale(x: Problem) -> tuple[Tensor, ...]:
    triton_ops.scale_rows_(x.working, x.advantages)
    return (x.working,)


def advantage(x: Problem) -> tuple[Tensor, ...]:
    return (triton_advantage.group_advantage(x.advantages, x.offsets, True, 1e-6, False, None)[0],)


def cuda(x: Problem) -> tuple[Tensor, ...]:
    processors = tiles.device(x.logits.device).processors
    return (cuda_tile.logprob(x.library, x.working, x.tokens, x.grad, TEMPERATURE, processors), x.working)


class Field(NamedTuple):
    """Of tiles.Tiles: the function whose kernel it concerns, what to try, and [dtype, vocabulary] to try it with."""

    function: Callable[[Problem], tuple[Tensor, ...]]
    kernel: str
    floor: tuple[str, ...]
    """The ceilings (timing.Ceilings) that a call of the function cannot beat, one after the other."""
    candidates: tuple[Any, ...]
    cases: tuple[tuple[str, int], ...]


def _tiles(*sizes: tuple[int, int, int]) -> tuple[Tile, ...]:
    return tuple(Tile(*size, chosen_by="") for size in sizes)


# By vectors of a thread, warps of a program, and programs. Larger ones spill, and of the loss the last two do.
CORE = _tiles((1, 8, 4), (4, 8, 2), (4, 8, 3), (8, 8, 2), (2, 16, 2), (4, 16, 1), (2, 32, 1), (2, 4, 8))
SWEEP = (*CORE, *_tiles((1, 8, 8), (2, 8, 6)))
THREE = (("bf16", WIDE), ("bf16", SMALL), ("fp32", WIDE))
FIELDS = {
    "statistics": Field(statistics, "statistics_kernel", ("read",), SWEEP, THREE),
    "gradient": Field(gradient, "statistics_gradient_kernel", ("copy",), SWEEP, THREE),
    "loss_forward": Field(loss_forward, "policy_loss_kernel", ("read",), CORE, THREE),
    # Two programs have more live rows than the cache holds: they are here to see whether that matters.
    "loss": Field(loss, "policy_loss_kernel", ("copy",),
                  _tiles((1, 16, 1), (2, 16, 1), (1, 32, 1), (2, 32, 1), (4, 8, 1), (8, 8, 1), (4, 8, 2), (2, 16, 2)),
                  (("bf16", WIDE), ("fp32", WIDE))),
    "loss_small": Field(loss, "policy_loss_kernel", ("copy",),
                        _tiles((2, 8, 2), (1, 16, 2), (2, 16, 2), (4, 16, 1), (2, 4, 4), (4, 4, 4), (2, 8, 3),
                               (1, 8, 4), (2, 8, 4)), (("bf16", SMALL), ("fp32", 32768))),
    # A vocabulary of 0: one whose rows take each share of this device's cache.
    "l2_share": Field(loss, "policy_loss_kernel", ("copy",),
                      tuple(Share(share, "") for share in (0.5, 0.625, 0.875, 1.0, 1.25)), (("bf16", 0),)),
    "scale": Field(scale, "scale_kernel", ("copy",), SWEEP, (("bf16", WIDE), ("bf16", SMALL))),
    "advantage": Field(advantage, "group_advantage_kernel", ("launch",),
                       tuple(Block(threads, "") for threads in (32, 64, 256, 512)), (("fp32", 1),)),
    # Of csrc/cuda, and so of no table in Python: one tile for statistics and gradient.
    CUDA: Field(cuda, "", ("read", "copy"),
                tuple(CudaTile(*sizes, "") for sizes in (
                    (128, 4, 8), (128, 8, 6), (256, 2, 6), (256, 4, 3), (256, 8, 2), (256, 8, 3), (512, 4, 2),
                    (512, 2, 3))), THREE),
}
