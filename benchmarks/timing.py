"""Clocks, cold caches, the device's measured ceilings, and peak memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

MIB = 2**20
# Enough to throw everything else out of a server's last-level cache.
STREAM = {"cpu": 256 * MIB, "cuda": 1024 * MIB}
QUICK_STREAM = 8 * MIB
SPIN = 6_000_000
"""Cycles that a GPU spins while the host gets ahead, 3 ms: a loss of thirty operators takes Python nearly one."""


class Clock:
    """Times single calls in seconds, with warm or cold caches."""

    def __init__(self, device: torch.device, stream: int) -> None:
        self.device = device
        self._buffer = torch.zeros(stream // 4, device=device)
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def __call__(self, call: Callable[[], Any]) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SPIN)  # so that the GPU's time is measured and not Python's
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def chill(self) -> None:
        """Evict the caches, and give freed heap memory back so that the next buffers are fresh pages."""
        self._buffer.add_(1)
        if self._libc is not None and hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)


class Ceilings:
    """Rates that the device reaches here and now: bytes/s of "read", "copy" (bytes in + bytes out) and "write",
    flop/s of "matrix", 1/s of "launch". Each is the fastest of a few plain torch calls."""

    def __init__(self, clock: Clock, kinds: set[str], stream: int, arguments: tuple[Tensor, ...] = ()) -> None:
        self._clock = clock
        probes = dict(_memory_probes(clock.device, stream), **_launch_probe(clock.device))
        if "matrix" in kinds:
            probes["matrix"] = _matrix_probes(*arguments)
        self._probes = {kind: (self._fastest(calls), work) for kind, (calls, work) in probes.items() if kind in kinds}

    def _fastest(self, calls: list[Callable[[], Any]]) -> Callable[[], Any]:
        for call in calls:
            call()
        return min(calls, key=lambda call: min(self._clock(call) for _ in range(3)))

    def sample(self) -> dict[str, float]:
        return {kind: work / self._clock(call) for kind, (call, work) in self._probes.items()}


def _memory_probes(device: torch.device, stream: int) -> dict[str, tuple[list[Callable[[], Any]], float]]:
    source, target = (torch.zeros(stream // 4, device=device) for _ in range(2))
    return {
        "read": ([source.sum, source.amax], stream),
        "copy": ([lambda: target.copy_(source), source.neg_], 2 * stream),
        "write": ([lambda: target.fill_(1), target.zero_], stream),
    }


def _launch_probe(device: torch.device) -> dict[str, tuple[list[Callable[[], Any]], float]]:
    one, launches = torch.zeros(1, device=device), 100

    def launch() -> None:
        for _ in range(launches):
            one.neg_()
    return {"launch": ([launch], launches)}


def _matrix_probes(hidden: Tensor, weight: Tensor) -> tuple[list[Callable[[], Any]], float]:
    """The products of a linear layer: logits, gradient of the hidden states, gradient of the weight."""
    hidden = hidden[:4096]
    logits = hidden @ weight.T
    dhidden, dweight = torch.empty_like(hidden), torch.empty_like(weight)
    return ([lambda: torch.mm(hidden, weight.T, out=logits),
             lambda: torch.mm(logits, weight, out=dhidden),
             lambda: torch.mm(logits.T, hidden, out=dweight)], 2 * logits.numel() * hidden.shape[1])


def peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that torch had allocated during the call, beyond those it held before. CPU: summed from the profiler's
    record of every allocation and release. CUDA: max_memory_allocated."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    records = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for record in sorted(records, key=lambda record: record.start_ns()):
        current += record.nbytes()
        peak = max(peak, current)
    return peak


def graph_seconds(call: Callable[[], Any], clock: Clock, rounds: int = 30) -> float:
    """Median time of one call replayed from a CUDA graph: a launch-bound call without its launches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    return sorted(clock(graph.replay) for _ in range(rounds))[rounds // 2]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}"


def clocks(device: torch.device) -> dict[str, int] | None:
    """The GPU's clocks in MHz, where NVML is there and answers."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return {"sm": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                "memory": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)}
    except pynvml.NVMLError:  # not every virtual machine lets it
        return None
