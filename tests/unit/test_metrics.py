"""The monitor: exact lines on disk, what the console shows, resuming, and the writers that may be missing."""

import io
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console

from srpo.config import Config
from srpo.errors import UserError
from srpo.metrics import METRICS, PHASES, Monitor

STEP = {"grad/norm": 0.1 + 0.2, "stage": "math", "epoch": 1, "step": 1, "reward/mean": 0.5, "accuracy/math": 0.25,
        "length/mean": 35.25, "groups/zero_advantage": 0.125, "rollout/tokens_per_s": 1934.4, "time/step": 3.42}


def settings(**logging) -> Config:
    return Config.model_validate({
        "run": "run", "model": {"path": "model"}, "data": {"train": ["a.jsonl"]},
        "stages": [{"name": "math", "domains": ["math"], "until": "steps", "steps": 1}],
        "logging": {"tensorboard": False} | logging})


@pytest.fixture
def out():
    return io.StringIO()


@pytest.fixture
def monitor(tmp_path, out):
    """A function that opens a monitor on the test's folder, on a plain stream or a terminal."""
    opened = []

    def monitor(rank: int = 0, terminal: bool = False, **logging) -> Monitor:
        console = Console(file=out, force_terminal=terminal, color_system=None, width=120)
        opened.append(Monitor(tmp_path, settings(**logging), rank, console=console))
        return opened[-1]

    yield monitor
    for m in opened:
        m.close()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_line_has_a_fixed_order_and_every_digit(monitor, tmp_path):
    monitor().log(STEP | {"b/other": 1, "a/other": 2})
    line = lines(tmp_path)[0]
    assert list(line) == [key for key in METRICS if key in STEP] + ["a/other", "b/other"]
    assert line["grad/norm"] == 0.1 + 0.2 and isinstance(line["step"], int)


def test_same_values_in_another_order_are_the_same_bytes(monitor, tmp_path):
    m = monitor()
    m.log(STEP)
    m.log(dict(reversed(STEP.items())))
    first, second = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert first == second


def test_tensors_become_numbers_and_none_is_left_out(monitor, tmp_path):
    monitor().log(STEP | {"loss/policy": torch.tensor(0.1), "policy/entropy": torch.tensor(2, dtype=torch.int64),
                          "accuracy/code": None})
    line = lines(tmp_path)[0]
    assert line["loss/policy"] == torch.tensor(0.1).item() and line["policy/entropy"] == 2
    assert "accuracy/code" not in line


@pytest.mark.parametrize(("value", "text"), [(math.nan, "nan"), (math.inf, "inf"), (torch.tensor(-math.inf), "-inf")])
def test_value_that_is_not_finite_is_recorded_and_stops_the_run(monitor, tmp_path, value, text):
    with pytest.raises(UserError, match=f"step 1: loss/policy = {text}; no checkpoint holds this step"):
        monitor().log(STEP | {"loss/policy": value})
    line = lines(tmp_path)[0]
    assert line["loss/policy"] == text and line["grad/norm"] == STEP["grad/norm"]


def test_full_disk_names_the_file(monitor, tmp_path):
    m = monitor()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left on device; make room"):
        m.log(STEP)


def test_other_ranks_write_nothing_but_keep_time(monitor, tmp_path, out):
    m = monitor(rank=1)
    with m.phase("rollout"):
        pass
    m.log(STEP)
    m.note("hello")
    m.resume(0)
    assert list(tmp_path.iterdir()) == [] and out.getvalue() == ""
    assert m.times()["time/rollout"] > 0


def test_times_add_up_and_start_afresh(monitor, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("srpo.metrics.time", types.SimpleNamespace(perf_counter=lambda: float(next(clock))))
    m = monitor()
    for name in ("warm start", "rollout", "rollout", "update"):  # the clock ticks once at each end
        with m.phase(name):
            pass
    # warm start 0-1 is no part of the step, which runs from 2 to the call at 8
    assert m.times() == {
        "time/rollout": 2.0, "time/reward": 0.0, "time/update": 1.0, "time/sync": 0.0, "time/step": 6.0}
    assert m.times() == {f"time/{name}": 0.0 for name in (*PHASES, "step")}


def test_plain_console_has_one_line_a_step(monitor, out):
    m = monitor()
    with m.phase("rollout"):
        pass
    m.log(STEP)
    assert out.getvalue() == ("step 1  stage math  epoch 1  reward 0.500  acc/math 0.250  length 35.2  zero-adv 12.5%  "
                              "tokens/s 1,934  seconds 3.4\n")


def test_terminal_shows_a_table_and_the_phase(monitor, out):
    m = monitor(terminal=True)
    with m.phase("rollout"):
        m._progress.refresh()
    for step in range(1, 22):
        m.log(STEP | {"step": step})
    m.close()
    text = out.getvalue()
    assert "step 1: rollout" in text
    heads = [line for line in text.splitlines() if "zero-adv" in line]
    rows = [line for line in text.splitlines() if "12.5%" in line]
    assert len(heads) == 2 and len(rows) == 21
    assert "acc/math" in heads[0] and "acc/code" not in heads[0] and "acc/other" not in heads[0]  # none in any stage
    row = rows[20].removeprefix("\x1b[2K")
    assert row.split() == ["21", "math", "1", "0.500", "0.250", "35.2", "12.5%", "1,934", "3.4"]


def test_phase_shows_its_end_after_an_error(monitor):
    m = monitor(terminal=True)
    with pytest.raises(ZeroDivisionError), m.phase("rollout"):
        raise ZeroDivisionError
    assert m._progress.tasks == []


def test_evaluations_are_compared_with_the_first(monitor, out):
    m = monitor()
    m.log({"step": 0, "eval/math": 0.25, "eval/code": 0.5})
    m.log({"step": 9, "eval/math": 0.75, "eval/code": 0.375})
    assert out.getvalue().splitlines() == [
        "evaluation at step 0: math 25.0%, code 50.0%",
        "evaluation at step 9: math 25.0% -> 75.0% (+50.0 points), code 50.0% -> 37.5% (-12.5 points)"]


def test_first_evaluation_is_remembered_by_a_resumed_run(monitor, out):
    m = monitor()
    m.log({"step": 0, "eval/math": 0.25})
    m = monitor()
    m.resume(0)
    m.log({"step": 9, "eval/math": 0.5})
    assert out.getvalue().splitlines()[-1] == "evaluation at step 9: math 25.0% -> 50.0% (+25.0 points)"


def test_notes_are_not_markup(monitor, out):
    monitor().note("aliased [bold] 3 tensors")
    assert out.getvalue() == "aliased [bold] 3 tensors\n"


def test_resume_drops_later_lines_and_a_torn_one(monitor, tmp_path):
    m = monitor()
    for step in (1, 2, 3):
        m.log(STEP | {"step": step})
    kept = b"".join((tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ep')
    m = monitor()
    m.resume(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept
    m.log(STEP | {"step": 3})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    m.resume(-1)
    assert lines(tmp_path) == []


def test_resume_without_a_file_is_fine(monitor, tmp_path):
    monitor().resume(5)
    assert list(tmp_path.iterdir()) == []


def test_damaged_line_is_named(monitor, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not valid JSON"):
        monitor()


def test_tensorboard_events_are_purged_on_resume(monitor, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    m = monitor(tensorboard=True)
    for step in (1, 2, 3):
        m.log(STEP | {"step": step, "grad/norm": float(step)})
    m.close()
    m = monitor(tensorboard=True)
    m.resume(2)
    m.log(STEP | {"step": 3, "grad/norm": 30.0})
    m.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("grad/norm")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert "stage" not in events.Tags()["scalars"]


def test_missing_tensorboard(monitor, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"logging\.tensorboard = True: needs `pip install tensorboard`"):
        monitor(tensorboard=True)


def test_missing_wandb(monitor, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="logging.wandb = 'srpo': needs `pip install wandb`; or leave it unset"):
        monitor(wandb="srpo")


class FakeWandb(types.ModuleType):
    """Records the calls of W&B's client, whose service a test cannot reach."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs, self.logged, self.finished = [], [], 0
        self.axes: dict[str, str | None] = {}

    def init(self, **kwargs):
        self.runs.append(kwargs)
        return self

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append((values["step"], values["grad/norm"]))

    def finish(self):
        self.finished += 1


def test_wandb_run_is_continued(monitor, monkeypatch, tmp_path):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (2, 1):  # taken back: W&B's own step would drop what comes again
        m = monitor(wandb="srpo")
        m.log(STEP | {"step": step})
    m.close()
    assert wandb.logged == [(2, STEP["grad/norm"]), (1, STEP["grad/norm"])] and wandb.finished == 1
    assert wandb.axes == {"step": None, "*": "step"}
    first, second = wandb.runs
    assert first == second and first["project"] == "srpo" and first["resume"] == "allow"
    assert first["config"]["logging"]["wandb"] == "srpo" and first["id"] == (tmp_path / "wandb.id").read_text()


class NVMLError(Exception):
    pass


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose driver's functions can be replaced; its clock ticks two seconds at each reading."""
    millijoules, seconds = iter([1_000_000, 1_700_000, 2_000_000]), iter([10.0, 12.0, 14.0])
    nvml = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda device: next(millijoules),
        nvmlDeviceGetMemoryInfo=lambda device: types.SimpleNamespace(used=3 * 2**30),
        nvmlDeviceGetUtilizationRates=lambda device: types.SimpleNamespace(gpu=91))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: types.SimpleNamespace(uuid="abc"))
    monkeypatch.setattr("srpo.metrics.time", types.SimpleNamespace(perf_counter=lambda: next(seconds)))
    return nvml


def test_gpu_figures(monitor, gpu, tmp_path):
    monitor().log(STEP)
    line = lines(tmp_path)[0]
    assert (line["gpu/memory_gib"], line["gpu/power_w"], line["gpu/utilization"]) == (3.0, 350.0, 91.0)


def refuse(*arguments):
    raise NVMLError("Not Supported")


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_driver_without_figures_is_said_once(monitor, gpu, tmp_path, caplog, function):
    setattr(gpu, function, refuse)
    m = monitor()
    for step in (1, 2):
        m.log(STEP | {"step": step})
    assert not [key for line in lines(tmp_path) for key in line if key.startswith("gpu/")]
    assert [r.getMessage() for r in caplog.records] == [
        "no gpu/ metrics: the driver does not give this GPU's figures: Not Supported"]


def test_a_driver_that_fails_later_does_not_end_the_run(monitor, gpu, tmp_path, caplog):
    m = monitor()
    m.log(STEP)
    gpu.nvmlDeviceGetMemoryInfo = refuse
    for step in (2, 3):
        m.log(STEP | {"step": step})
    assert ["gpu/power_w" in line for line in lines(tmp_path)] == [True, False, False] and len(caplog.records) == 1
