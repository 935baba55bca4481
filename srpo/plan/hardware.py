"""What a GPU and its links do: every number that the plan does not derive, with where it comes from.

`measured`: by this project, on one H100. `datasheet`: the vendor's. `published`: somebody else's measurement. `recipe`:
the SRPO report. `guess`: ours, to be replaced by a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from srpo.errors import UserError

GIB = 2**30
Source = Literal["measured", "datasheet", "published", "recipe", "ledger", "given", "guess"]


@dataclass(frozen=True)
class Assumption:
    """A named number."""

    name: str
    value: float
    unit: str
    source: Source
    note: str = ""


@dataclass(frozen=True)
class Gpu:
    """One GPU, the node it is in and the network. Rates are those of large transfers and products."""

    memory: Assumption
    reserve: Assumption
    graphs: Assumption
    bandwidth: Assumption
    matmul: Assumption
    peak: Assumption
    layer_matmul: Assumption
    decode_bandwidth: Assumption
    attention_forward: Assumption
    attention_backward: Assumption
    node: Assumption
    link: Assumption
    network: Assumption
    host: Assumption
    all_reduce: Assumption
    decode_step: Assumption

    @property
    def assumptions(self) -> list[Assumption]:
        return [getattr(self, f.name) for f in fields(self)]


def gpu(name: str) -> Gpu:
    """By the name that --gpu takes. Raises UserError for another."""
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise UserError(f"--gpu {name}: not known; choose from {', '.join(GPUS)}") from None


def _hopper(memory: float, bandwidth: Assumption, matmul: Assumption) -> Gpu:
    return Gpu(
        memory=Assumption("GPU memory", memory, "GiB", "datasheet", "what torch reports as total"),
        reserve=Assumption("beside torch's allocations", 4.0, "GiB", "guess",
                           "CUDA context, NCCL, cuBLAS, fragmentation"),
        graphs=Assumption("vLLM's CUDA graphs", 1.0, "GiB", "guess", "held while it sleeps; none with rollout.eager"),
        bandwidth=bandwidth,
        matmul=matmul,
        peak=Assumption("bfloat16 peak", 989.0, "TFLOP/s", "datasheet", "what MFU is a share of"),
        layer_matmul=Assumption("of that in a layer's products", 0.85, "share", "guess"),
        decode_bandwidth=Assumption("of the memory bandwidth in decode", 0.8, "share", "guess"),
        attention_forward=Assumption("attention, forward", 370.0, "TFLOP/s", "published",
                                     "FlashAttention-2, head 128, FlashAttention-3 paper"),
        attention_backward=Assumption("attention, backward", 300.0, "TFLOP/s", "guess"),
        node=Assumption("GPUs of a node", 8, "", "datasheet"),
        link=Assumption("NVLink, one direction", 0.8 * 450, "GB/s", "guess", "0.8 of the data sheet's 450"),
        network=Assumption("InfiniBand a GPU, one direction", 0.8 * 50, "GB/s", "guess",
                           "0.8 of 400 Gbit/s, one adapter a GPU"),
        host=Assumption("PCIe to host memory", 0.8 * 64, "GB/s", "guess", "0.8 of the data sheet's 64 (Gen5 x16)"),
        all_reduce=Assumption("latency of a small all-reduce", 10.0, "us", "guess", "vLLM's own, inside a node"),
        decode_step=Assumption("host and launches a decode step", 3.0, "ms", "guess", "scheduler, sampler, CUDA graph"),
    )


GPUS = {
    "h100": _hopper(
        79.1,
        Assumption("memory bandwidth", 3.0, "TB/s", "measured", "one H100; data sheet 3.35"),
        Assumption("matrix products", 798.0, "TFLOP/s", "measured", "one H100, large bfloat16 products")),
    "h200": _hopper(
        139.8,
        Assumption("memory bandwidth", 0.9 * 4.8, "TB/s", "guess", "0.9 of the data sheet's 4.8, as on the H100"),
        Assumption("matrix products", 798.0, "TFLOP/s", "guess", "the H100's: the same multiprocessors")),
}
