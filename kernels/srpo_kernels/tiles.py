"""What is tuned of the Triton kernels, by compute capability; csrc/cuda/shape.h has the CUDA kernels'.

`python -m benchmarks.bench_tiles` measures other values than these; docs/performance.md says how one gets in here. No
kernel has stages or clusters to choose: they wait for loads with other warps, and share nothing between programs.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

# What chose a value: one of these, or the heading of an entry in the log of docs/performance.md.
COMPILED = "compiled for sm_90a: registers, spills, issue slots; not measured (docs/performance.md)"
COUNTED = "bytes of the rows that are live against those of the cache; not measured (docs/performance.md)"


class Tile(NamedTuple):
    """How a kernel takes a row: tiles [k, 32 * warps, VEC], by so many programs a multiprocessor. VEC: 16 bytes."""

    k: int
    warps: int
    programs: int
    chosen_by: str

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        # The registers, which come by eights, that let all the programs be resident; ptxas may otherwise aim for fewer
        # programs, and spill.
        registers = 65536 // (self.programs * self.warps * 32) // 8 * 8
        return {"K": self.k, "LANES": 32 * self.warps, "VEC": 16 // dtype.itemsize, "num_warps": self.warps,
                "maxnreg": registers, "enable_fp_fusion": True}


class Share(NamedTuple):
    of_l2: float
    chosen_by: str


class Block(NamedTuple):
    threads: int
    chosen_by: str


class Tiles(NamedTuple):
    """Of one architecture. The policy loss with its gradient needs its rows to stay in the L2 cache between two sweeps:
    `loss_small` where its programs' rows take at most `l2_share` of it, which leaves the rest for what is written;
    `loss` otherwise."""

    statistics: Tile
    gradient: Tile
    loss_forward: Tile
    loss: Tile
    loss_small: Tile
    l2_share: Share
    scale: Tile
    advantage: Block


DEFAULT = (9, 0)

TABLE = {
    (9, 0): Tiles(
        # Sweeps that read each logit once: half of the warps, and all registers.
        statistics=Tile(k=2, warps=8, programs=4, chosen_by=COMPILED),
        gradient=Tile(k=2, warps=8, programs=4, chosen_by=COMPILED),
        loss_forward=Tile(k=2, warps=8, programs=4, chosen_by=COMPILED),
        # One program covers the latency of its loads with more warps; two, also that of a row's ends.
        loss=Tile(k=4, warps=16, programs=1, chosen_by=COMPILED),
        loss_small=Tile(k=4, warps=8, programs=2, chosen_by=COMPILED),
        l2_share=Share(0.75, chosen_by=COUNTED),
        scale=Tile(k=2, warps=8, programs=4, chosen_by=COMPILED),
        advantage=Block(128, chosen_by=COMPILED),
    ),
}


class Device(NamedTuple):
    """What a launch depends on. Small numbers for the interpreter, so that rows outnumber programs."""

    processors: int
    l2_bytes: int
    capability: tuple[int, int]

    @property
    def tiles(self) -> Tiles:
        """Those of DEFAULT for an architecture without its own: 64K registers a multiprocessor are all they ask for."""
        return TABLE.get(self.capability, TABLE[DEFAULT])

    def loss_tile(self, row_bytes: int) -> Tile:
        tiles = self.tiles
        live = tiles.loss_small.programs * self.processors * row_bytes
        return tiles.loss_small if live <= tiles.l2_share.of_l2 * self.l2_bytes else tiles.loss

    def __str__(self) -> str:
        own, of = (".".join(map(str, capability)) for capability in (self.capability, DEFAULT))
        return f"tiles for {own}" if self.capability in TABLE else f"tiles for {of}, as there are none for {own}"


@functools.cache
def device(of: torch.device) -> Device:
    """Asked for, and logged, at the first launch there."""
    if of.type != "cuda":
        return Device(1, 2**20, DEFAULT)
    properties = torch.cuda.get_device_properties(of)
    found = Device(properties.multi_processor_count, properties.L2_cache_size, (properties.major, properties.minor))
    logger.log(logging.INFO if found.capability in TABLE else logging.WARNING, "kernels on %s: %s", of, found)
    return found
