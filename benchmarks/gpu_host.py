"""The machine that `gpu_check` runs on: what it is, what a step finds on it, and what the GPU does meanwhile."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
PACKAGES = ("torch", "triton", "vllm", "megatron-core", "transformers", "flash-attn", "liger-kernel", "trl",
            "quack-kernels", "cut-cross-entropy", "nvidia-ml-py")

PROBE = """
import json, torch
found = {"cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found |= {"device": p.name, "uuid": f"GPU-{p.uuid}", "capability": f"{p.major}.{p.minor}",
              "memory_gib": round(p.total_memory / 2**30, 1), "multiprocessors": p.multi_processor_count}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Host:
    """What was found. `steps`: names of those that passed."""

    found: dict[str, Any]
    steps: set[str] = field(default_factory=set)

    def lacks(self, need: str) -> str | None:
        """Why a step with this need cannot run: "module:vllm", "tool:nvcc", "gpus:2", "file:data/x", "step:build"."""
        kind, _, name = need.partition(":")
        if kind == "module":
            return None if _has_module(name) else f"the Python package {name} is not installed"
        if kind == "tool":
            return None if tool(name) else f"{name} is not on the PATH nor in {CUDA}"
        if kind == "gpus":
            return None if self.found["gpus"] >= int(name) else f"needs {name} GPUs, found {self.found['gpus']}"
        if kind == "file":
            return None if (ROOT / name).exists() else f"{name} does not exist"
        if kind == "step":
            return None if name in self.steps else f"the step {name} has not passed"
        raise ValueError(f"unknown need {need!r}")


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def tool(name: str) -> str | None:
    """Its path."""
    return shutil.which(name) or shutil.which(name, path=CUDA)


def probe() -> dict[str, Any]:
    """Device, driver, versions, commit. In a process of its own: a CUDA context would hold memory during all steps.

    Without a GPU "why" is what torch, or its import, said about that.
    """
    looked = subprocess.run([sys.executable, "-c", PROBE], text=True, capture_output=True)
    found = json.loads(looked.stdout) if looked.returncode == 0 else {"cuda": None, "gpus": 0}
    if not found["gpus"]:
        if looked.returncode:
            said = looked.stderr.strip() or f"asking torch ended with exit code {looked.returncode}"
            found["why"] = said.splitlines()[-1]
        else:
            found["why"] = "torch is a CPU build" if found["cuda"] is None else (
                "torch.cuda.device_count() is 0, see nvidia-smi")
    found["driver"] = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).split("\n")[0]
    found["python"] = sys.version.split()[0]
    found["commit"] = commit()
    found["versions"] = {package: _version(package) for package in PACKAGES}
    return found


def commit() -> str:
    """Of what is measured: git's word, or that of SRPO_COMMIT in a copy of the tree without git."""
    return _output(["git", "describe", "--always", "--dirty"]) or os.environ.get("SRPO_COMMIT") or "unknown"


def _output(command: list[str]) -> str:
    """What a command prints; nothing where it is missing or fails."""
    try:
        run = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    except FileNotFoundError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Sampler:
    """Clocks, power, temperature, memory and throttling of a GPU, read by NVML five times a second while a step runs.

    It only reads; nothing of the card is changed. `figures` are None without NVML, and lack what the driver refuses.
    """

    SECONDS = 0.2

    def __init__(self, uuid: str, nvml: Any | None) -> None:
        self._nvml, self._uuid = nvml, uuid
        self._readings: list[dict[str, float]] = []
        self._throttled: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Sampler:
        if self._nvml is not None:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self._uuid)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._nvml is not None:
            self._over.set()
            self._thread.join()

    def _sample(self) -> None:
        n, handle = self._nvml, self._handle
        assert n is not None
        # The reasons are bits; being idle, or at what an application asked for, is no throttling.
        reasons = {name.removeprefix("nvmlClocksThrottleReason"): getattr(n, name) for name in dir(n)
                   if name.startswith("nvmlClocksThrottleReason")
                   and not name.endswith(("None", "All", "GpuIdle", "ApplicationsClocksSetting"))}
        figures: dict[str, Callable[[], float]] = {
            "sm_mhz": lambda: n.nvmlDeviceGetClockInfo(handle, n.NVML_CLOCK_SM),
            "memory_mhz": lambda: n.nvmlDeviceGetClockInfo(handle, n.NVML_CLOCK_MEM),
            "power_w": lambda: n.nvmlDeviceGetPowerUsage(handle) / 1000,
            "temperature_c": lambda: n.nvmlDeviceGetTemperature(handle, n.NVML_TEMPERATURE_GPU),
            "memory_gib": lambda: n.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
            "busy": lambda: n.nvmlDeviceGetUtilizationRates(handle).gpu,
            "reasons": lambda: n.nvmlDeviceGetCurrentClocksThrottleReasons(handle)}
        while True:
            reading = {}
            for name, read in figures.items():
                with suppress(n.NVMLError):  # not every driver, or virtual machine, gives everything
                    reading[name] = read()
            bits = int(reading.pop("reasons", 0))
            self._throttled |= {name for name, bit in reasons.items() if bits & bit}
            self._readings.append(reading)
            if self._over.wait(self.SECONDS):
                return

    @property
    def figures(self) -> dict[str, Any] | None:
        """[smallest, median, largest] of each; clocks, power and temperature only of moments when a kernel ran."""
        if self._nvml is None:
            return None
        busy = [reading for reading in self._readings if reading.get("busy", 1)] or self._readings
        found: dict[str, Any] = {}
        for name in busy[0] if busy else ():
            readings = self._readings if name in ("memory_gib", "busy") else busy
            values = [reading[name] for reading in readings if name in reading]
            found[name] = [round(value, 1) for value in (min(values), statistics.median(values), max(values))]
        return found | {"throttled": sorted(self._throttled)}


def nvml(uuid: str) -> tuple[Any | None, str]:
    """pynvml, where it is installed and the driver answers it about this GPU; else why not."""
    if not _has_module("pynvml"):
        return None, "nvidia-ml-py is not installed"
    library = importlib.import_module("pynvml")
    try:
        library.nvmlInit()
        library.nvmlDeviceGetHandleByUUID(uuid)
    except library.NVMLError as error:
        return None, f"NVML does not answer: {error}"
    return library, ""
