"""What a run shows while it goes: the console, `metrics.jsonl`, TensorBoard, Weights & Biases, the GPU's own figures.

Rank 0 writes; on the other ranks only the timers run. A value of None was not measured in this step and is left out.
A value that is not finite ends the run: its line is written with the value as a string ("nan", "inf"), so that the
figures beside it can be read, and a UserError names the metric before a checkpoint can store what produced it.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from srpo import comm
from srpo.config import Config
from srpo.data.schema import DOMAINS
from srpo.errors import UserError
from srpo.files import write_text
from srpo.terminal import Terminal

log = logging.getLogger(__name__)

PHASES = ("rollout", "reward", "update", "sync")
"""Phases of a step, in order; each has a `time/` metric, in seconds."""

METRICS = (
    "step", "epoch", "stage",
    "reward/mean", "reward/std", *(f"reward/{domain}" for domain in DOMAINS), "reward/failed",
    *(f"accuracy/{domain}" for domain in DOMAINS), "length/mean", *(f"length/{domain}" for domain in DOMAINS),
    "groups/zero_advantage", "groups/all_correct", "groups/all_wrong",
    "loss/policy", "policy/entropy", "policy/clip_frac", "policy/kl", "grad/norm", "optimizer/lr",
    "rollout/tokens_per_s", "rollout/truncated", "rollout/stale", "rollout/rounds", "rollout/discarded",
    "rollout/logprob_diff_mean", "rollout/logprob_diff_max", "train/tokens_per_s",
    "weights/aliased_bytes", "weights/moved_bytes",
    *(f"time/{phase}" for phase in PHASES), "time/step", "time/slowest_rank", "time/slowest_ratio",
    "time/evaluation", "time/checkpoint", *(f"eval/{domain}" for domain in DOMAINS),
)
"""Order of the keys in a line of metrics.jsonl; any other key follows in alphabetical order."""

_COLUMNS: tuple[tuple[str, str, int, str], ...] = (
    ("step", "step", 6, "d"), ("stage", "stage", 12, "s"), ("epoch", "epoch", 5, "d"),
    ("reward", "reward/mean", 7, ".3f"),
    *((f"acc/{domain}", f"accuracy/{domain}", len(f"acc/{domain}"), ".3f") for domain in DOMAINS),
    ("length", "length/mean", 8, ",.1f"), ("zero-adv", "groups/zero_advantage", 8, ".1%"),
    ("tokens/s", "rollout/tokens_per_s", 9, ",.0f"), ("seconds", "time/step", 8, ".1f"),
)
_HEADER_EVERY = 20


class Monitor:
    """One a process. `run_dir` exists; `config.logging` says what is written beside metrics.jsonl.

    Raises UserError when TensorBoard or W&B is asked for and not installed.
    """

    def __init__(self, run_dir: str | Path, config: Config, rank: int, console: Console | None = None) -> None:
        self._writes = rank == 0
        self._seconds: dict[str, float] = {}
        self._own: dict[str, float] = {}
        self._began: float | None = None
        self._step = 0
        if not self._writes:
            return
        self._run_dir = Path(run_dir)
        self._path = self._run_dir / "metrics.jsonl"
        self._console = console or Terminal()
        self._progress = _progress(self._console) if self._console.is_terminal else None
        self._rows = 0
        trained = {f"accuracy/{domain}" for stage in config.stages for domain in stage.domains}
        self._columns = [c for c in _COLUMNS if not c[1].startswith("accuracy/") or c[1] in trained]
        self._before = _first_evaluation(self._path)
        self._gpu = _Gpu.find()
        self._summary_writer: Any = _summary_writer() if config.logging.tensorboard else None
        self._tensorboard: Any = None
        self._wandb = _wandb(self._run_dir, config) if config.logging.wandb else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the work and show it.

        The names in PHASES add up to a step's times; `spent` tells those of any other.
        """
        began, waited = time.perf_counter(), comm.waited()
        if name in PHASES and self._began is None:
            self._began = began
        with self._bar(name):
            yield
        seconds = time.perf_counter() - began
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._own[name] = self._own.get(name, 0.0) + seconds - (comm.waited() - waited)

    def times(self) -> dict[str, float]:
        """Seconds of each phase since the last call, and of the whole step since its first phase began."""
        now = time.perf_counter()
        times = {f"time/{phase}": self._seconds.get(phase, 0.0) for phase in PHASES}
        times["time/step"] = now - (self._began if self._began is not None else now)
        self._seconds = {name: seconds for name, seconds in self._seconds.items() if name not in PHASES}
        self._began = None
        return times

    def spent(self, name: str) -> float | None:
        """Seconds of a phase beside PHASES since the last call; None: there was none."""
        return self._seconds.pop(name, None)

    def own_times(self) -> dict[str, float]:
        """Seconds of each phase since the last call, less what this rank waited for others in it."""
        own = {phase: self._own.get(phase, 0.0) for phase in PHASES}
        self._own.clear()
        return own

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Record one step, or one evaluation (`step` and eval/*). Numbers may be 0-dim tensors.

        Raises UserError naming a metric that is not finite, or the file when it cannot be written.
        """
        if not self._writes:
            return
        values = {key: _plain(value) for key, value in metrics.items() if value is not None}
        if "reward/mean" in values and self._gpu:
            values |= self._gpu.read()
        values = dict(sorted(values.items(), key=_place))
        self._step = values["step"]
        bad = [key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        self._append({key: str(value) if key in bad else value for key, value in values.items()})
        if bad:
            raise UserError(f"step {self._step}: {bad[0]} = {values[bad[0]]}; no checkpoint holds this step. Lower "
                            f"optimizer.lr or optimizer.clip_grad, and compare the last lines of {self._path}")
        self._show(values)
        if self._summary_writer:
            self._write_tensorboard(values)
        if self._wandb:
            self._wandb.log(values)

    def note(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self._writes:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def resume(self, step: int) -> None:
        """Forget what was logged beyond `step` (-1: everything), and a last line that was cut short.

        The file is replaced atomically. Raises UserError naming a line that is damaged.
        """
        self._step = max(step, 0)
        if not self._writes or not self._path.exists():
            return
        write_text(self._path, "".join(line for line, values in _lines(self._path) if values["step"] <= step))
        self._before = _first_evaluation(self._path)

    def close(self) -> None:
        """Stop the display and finish the writers."""
        if not self._writes:
            return
        if self._progress:
            self._progress.stop()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    # -- files ------------------------------------------------------------------------------------------------------

    def _append(self, values: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise UserError(f"{self._path}: {e.strerror}; make room or change `run`, then start again") from None

    def _write_tensorboard(self, values: dict[str, Any]) -> None:
        if self._tensorboard is None:  # only now is the first step known, from which older events are purged
            self._tensorboard = self._summary_writer(str(self._run_dir / "tb"), purge_step=self._step)
        for key, value in values.items():
            if key != "step" and not isinstance(value, str):
                self._tensorboard.add_scalar(key, value, self._step)
        self._tensorboard.flush()

    # -- console ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _bar(self, name: str) -> Iterator[None]:
        progress = self._progress if self._writes else None
        if progress is None:
            yield
            return
        progress.start()
        part = PHASES.index(name) if name in PHASES else None
        label = name if part is None else f"step {self._step + 1}: {name}"
        # A step's bar has one segment a phase; other work, whose end is unknown, makes it pulse.
        task = progress.add_task(label, total=None if part is None else len(PHASES), completed=part or 0)
        try:
            yield
        finally:
            progress.remove_task(task)
            progress.refresh()

    def _show(self, values: dict[str, Any]) -> None:
        if "reward/mean" in values:
            if self._progress:
                if self._rows % _HEADER_EVERY == 0:
                    self.note(" ".join(_pad(head, head, width) for head, _, width, _ in self._columns))
                self.note(" ".join(_pad(head, _cell(values, key, spec), width)
                                   for head, key, width, spec in self._columns))
            else:
                cells = ((head, _cell(values, key, spec)) for head, key, _, spec in self._columns)
                self.note("  ".join(f"{head} {text}" for head, text in cells if text))
            self._rows += 1
        now = {key: value for key, value in values.items() if key.startswith("eval/")}
        if now:
            changes = (_change(key, self._before.get(key), value) for key, value in now.items())
            self.note(f"evaluation at step {self._step}: " + ", ".join(changes))
            self._before = now | self._before


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(40), TimeElapsedColumn(), console=console,
                    transient=True, refresh_per_second=4)


def _cell(values: Mapping[str, Any], key: str, spec: str) -> str:
    return format(values[key], spec) if key in values else ""


def _pad(head: str, text: str, width: int) -> str:
    return f"{text:<{width}}" if head == "stage" else f"{text:>{width}}"


def _change(key: str, before: float | None, now: float) -> str:
    name = key.removeprefix("eval/")
    if before is None:
        return f"{name} {now:.1%}"
    return f"{name} {before:.1%} -> {now:.1%} ({100 * (now - before):+.1f} points)"


def _plain(value: Any) -> Any:
    """A Python number from a 0-dim tensor or a numpy scalar."""
    return value.item() if hasattr(value, "item") else value


def _place(item: tuple[str, Any]) -> tuple[int, str]:
    key = item[0]
    return (METRICS.index(key) if key in METRICS else len(METRICS), key)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line with its values; the last one may have been cut short by a crash."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield line, json.loads(line)
            except json.JSONDecodeError as e:
                raise UserError(f"{path}:{number}: not valid JSON: {e.msg}; remove the line to resume") from None


def _first_evaluation(path: Path) -> dict[str, float]:
    """The first value of every eval/* metric in the file: the "before" of the lines that follow."""
    first: dict[str, float] = {}
    if path.exists():
        for _, values in _lines(path):
            first = {key: value for key, value in values.items() if key.startswith("eval/")} | first
    return first


# -- writers that may not be installed --------------------------------------------------------------------------------


def _summary_writer() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ModuleNotFoundError:
        raise UserError("logging.tensorboard = True: needs `pip install tensorboard`; or set it to false") from None


def _wandb(run_dir: Path, config: Config) -> Any:
    """Start a W&B run; its id is kept in RUN/wandb.id, so that a resumed run continues it."""
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError:
        project = config.logging.wandb
        raise UserError(f"logging.wandb = {project!r}: needs `pip install wandb`; or leave it unset") from None
    file = run_dir / "wandb.id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:8])
    run = wandb.init(project=config.logging.wandb, name=run_dir.name, id=file.read_text(), dir=str(run_dir),
                     resume="allow", config=config.model_dump())
    # W&B drops rows whose own step has been before, as those that a resumed run repeats: let it count by itself.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


class _Gpu:
    """Figures of this process's GPU from the driver (nvidia-ml-py), for the time since the last reading.

    Some devices do not give them (MIG slices, old boards without an energy counter): the run says so once and goes on.
    """

    @classmethod
    def find(cls) -> _Gpu | None:
        import torch

        return cls(f"GPU-{torch.cuda.get_device_properties().uuid}") if torch.cuda.is_available() else None

    def __init__(self, uuid: str) -> None:
        try:
            self._nvml = importlib.import_module("pynvml")
        except ModuleNotFoundError:
            raise UserError("the GPU's own figures need `pip install nvidia-ml-py`") from None
        self._device: Any = None
        with self._given():
            self._nvml.nvmlInit()
            device = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            self._before = self._figures(device)
            self._device = device

    def read(self) -> dict[str, float]:
        """gpu/memory_gib: in use on the whole device now. gpu/power_w: mean since the last reading, from the energy
        counter. gpu/utilization: percent of time with a kernel running, in the driver's last sampling window. Nothing
        where the driver does not give them."""
        figures: dict[str, float] = {}
        if self._device is not None:
            with self._given():
                before, self._before = self._before, self._figures(self._device)
                seconds, millijoules, used, utilization = self._before
                figures = {"gpu/memory_gib": used / 2**30,
                           "gpu/power_w": (millijoules - before[1]) / 1000 / (seconds - before[0]),
                           "gpu/utilization": float(utilization)}
        return figures

    def _figures(self, device: Any) -> tuple[float, int, int, int]:
        """Seconds of the clock, millijoules of the energy counter, bytes in use, percent of utilization."""
        return (time.perf_counter(), self._nvml.nvmlDeviceGetTotalEnergyConsumption(device),
                self._nvml.nvmlDeviceGetMemoryInfo(device).used,
                self._nvml.nvmlDeviceGetUtilizationRates(device).gpu)

    @contextmanager
    def _given(self) -> Iterator[None]:
        """Ask no more once the driver has refused."""
        try:
            yield
        except self._nvml.NVMLError as e:
            self._device = None
            log.warning("no gpu/ metrics: the driver does not give this GPU's figures: %s", e)
