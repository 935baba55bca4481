"""The runner of `make gpu-check` with steps of its own; what the real ones find, only a GPU shows."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_canary, bench_memory, gpu_check, gpu_host, gpu_kernels, gpu_report
from benchmarks.gpu_steps import STEPS, Step

FOUND = {"device": "NVIDIA H100 80GB HBM3", "uuid": "GPU-1", "gpus": 1, "cuda": "13.0", "driver": "580.1",
         "python": "3.12", "memory_gib": 79.2, "commit": "abc", "versions": {"torch": "2.11.0", "vllm": None}}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    here = dict(FOUND)
    monkeypatch.setattr(gpu_check, "probe", lambda: here)
    monkeypatch.setattr(gpu_check, "nvml", lambda uuid: (None, "nvidia-ml-py is not installed"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return here


def check(out: Path, *steps: Step, only: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    code = gpu_check.main(["--out", str(out), *(("--only", *only) if only else ())], steps)
    return code, json.loads((out / "results.json").read_text())["steps"]


def count(out: Path) -> str:
    """A command that leaves a mark each time."""
    return f"echo x >> {shlex.quote(str(out))}/marks; echo done"


def marks(out: Path) -> int:
    return (out / "marks").read_text().count("x")


def test_a_step_passes_fails_times_out_or_lacks_something(found: dict[str, Any], tmp_path: Path):
    began = time.monotonic()
    code, results = check(
        tmp_path, Step("good", "echo first; echo OUT/NAME.json; echo '{}' > OUT/NAME.json"),
        Step("bad", "echo it broke; exit 3"),
        Step("slow", "echo begun; sleep 600 & echo $! > OUT/left; sleep 600", limit=1),
        Step("absent", "touch OUT/absent", ("module:no.such.package", "gpus:2", "tool:no-such-tool", "step:bad")),
        Step("after", "echo fine", ("step:good", "module:json", "file:benchmarks")))
    assert code == 1 and time.monotonic() - began < 240
    assert {name: result["status"] for name, result in results.items()} == {
        "good": "passed", "bad": "failed", "slow": "time-out", "absent": "not run", "after": "passed"}
    assert results["good"]["says"] == f"{tmp_path}/good.json" and results["good"]["figures"] == "good.json"
    assert (tmp_path / "good.log").read_text().startswith("first\n")
    assert results["bad"]["says"] == "exit code 3; it broke"
    assert results["slow"]["says"] == "stopped after 1 s; begun"
    assert results["absent"]["says"] == (
        "the Python package no.such.package is not installed; needs 2 GPUs, found 1; no-such-tool is not on the PATH "
        f"nor in {gpu_host.CUDA}; the step bad has not passed")
    assert not (tmp_path / "absent").exists()
    assert _over(int((tmp_path / "left").read_text()))


def _over(pid: int) -> bool:
    """Gone, or dead and not yet buried by whoever inherited it."""
    deadline = time.monotonic() + 60
    while _state(pid) not in ("", "Z"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _state(pid: int) -> str:
    """One letter, see proc(5); "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_steps_see_the_repository_and_this_interpreter(found: dict[str, Any], tmp_path: Path):
    code, results = check(tmp_path, Step("look", "PYTHON -c 'import sys, os, srpo_kernels, benchmarks; "
                                         "print(sys.executable, os.environ[\"GIVEN\"], os.environ[\"SRPO_COMMIT\"])'",
                                         env={"GIVEN": "yes"}))
    assert code == 0 and results["look"]["says"] == f"{sys.executable} yes abc"


def test_what_ended_is_not_repeated_but_for_another_commit(found: dict[str, Any], tmp_path: Path):
    good, bad = Step("good", count(tmp_path)), Step("bad", f"{count(tmp_path)}; exit 1")
    waiting = Step("waiting", count(tmp_path), ("step:later",))
    later = Step("later", count(tmp_path))
    assert check(tmp_path, good, bad, waiting)[0] == 1
    assert marks(tmp_path) == 2
    code, results = check(tmp_path, good, bad, later, waiting)
    assert code == 1 and marks(tmp_path) == 4 and list(results) == ["good", "bad", "later", "waiting"]
    assert check(tmp_path, good, bad, later, waiting, only=("good",))[0] == 0
    assert marks(tmp_path) == 5
    found["commit"] = "def"
    assert check(tmp_path, good, bad)[1].keys() == {"good", "bad"}
    assert marks(tmp_path) == 7


def test_a_step_that_has_more_to_do_goes_on_in_the_next_run(found: dict[str, Any], tmp_path: Path):
    step = Step("long", f"{count(tmp_path)}; [ $(wc -l < OUT/marks) = 3 ] || exit 75")
    for code, status in ((1, "unfinished"), (1, "unfinished"), (0, "passed"), (0, "passed")):
        found_code, results = check(tmp_path, step)
        assert (found_code, results["long"]["status"]) == (code, status)
    assert results["long"]["says"] == "done" and marks(tmp_path) == 3


def test_a_cut_repeats_the_step_that_was_cut(tmp_path: Path):
    """Killed in its second step, and asked to end in it."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import sys
from benchmarks import gpu_check
from benchmarks.gpu_steps import Step
gpu_check.probe, gpu_check.nvml = lambda: {FOUND!r}, lambda uuid: (None, "none")
first = Step("first", {count(tmp_path)!r})
second = Step("second", "echo $$ > {tmp_path}/pid; [ -e {tmp_path}/quick ] || sleep 600")
sys.exit(gpu_check.main(["--out", {str(tmp_path)!r}], [first, second]))
""")
    command = [sys.executable, str(program)]
    for ending in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, env={"PYTHONPATH": str(gpu_host.ROOT), "PATH": "/usr/bin:/bin"},
                                   stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        # Asleep: it has begun to wait for the step, and is no more about to.
        pid = tmp_path / "pid"
        while not pid.exists() or not pid.read_text().strip() or _state(process.pid) != "S":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(ending)
        assert process.wait(240) == (143 if ending == signal.SIGTERM else -signal.SIGKILL)
        step = int(pid.read_text())
        if ending == signal.SIGTERM:
            assert _over(step)
        else:
            gpu_check.os.killpg(step, signal.SIGKILL)
        pid.unlink()
        assert json.loads((tmp_path / "results.json").read_text())["steps"].keys() == {"first"}
    (tmp_path / "quick").touch()
    assert subprocess.run(command, env={"PYTHONPATH": str(gpu_host.ROOT), "PATH": "/usr/bin:/bin"}).returncode == 0
    assert marks(tmp_path) == 1


def test_without_a_gpu(found: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture):
    found |= {"gpus": 0, "why": "torch is a CPU build"}
    assert gpu_check.main(["--out", str(tmp_path / "new")], [Step("any", "true")]) == 2
    assert capsys.readouterr().err.endswith("no NVIDIA GPU here, so nothing was run: torch is a CPU build\n")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("torch, why", [
    ("raise ImportError('no libcudart')", "ImportError: no libcudart"),
    ("import os; os.kill(os.getpid(), 11)", "asking torch ended with exit code -11"),
    ("class version: cuda = None\nclass cuda: device_count = is_available = int", "torch is a CPU build"),
    ("class version: cuda = '13.0'\nclass cuda: device_count = is_available = int",
     "torch.cuda.device_count() is 0, see nvidia-smi")])
def test_why_there_is_no_gpu(torch: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torch.py").write_text(torch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = gpu_host.probe()
    assert (found["gpus"], found["why"]) == (0, why)


def test_an_unknown_step_is_named(found: dict[str, Any], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--only", "nothing"], [Step("one", "true")])
    assert "--only nothing: no such step; there are one" in capsys.readouterr().err


def row(implementation: str, seconds: float, **changed: Any) -> dict[str, Any]:
    return {"case": "policy_loss forward+backward bf16 8192x152064", "implementation": implementation, "dtype": "bf16",
            "rows": 8192, "floor": 1.66e-3, "value_error": 1e-6,
            "warm": {"median": seconds, "to_floor": seconds / 1.66e-3}} | changed


def test_markdown(found: dict[str, Any], tmp_path: Path):
    rows = [row("srpo_kernels", 2e-3), row("Liger", 4e-3), row("torch eager", 9e-3),
            {"case": row("x", 1)["case"], "implementation": "absent", "reason": "not installed"},
            {"case": "canary", "implementation": "srpo", "ratios": {"p99_to_threshold": 0.12}}]
    (tmp_path / "figures.json").write_text(json.dumps({"rows": rows}))
    check(tmp_path, Step("bench", "cp OUT/figures.json OUT/NAME.json; echo 'a | b'"),
          Step("vllm", "true", ("module:no_such_module",)))
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == "# NVIDIA H100 80GB HBM3"
    assert lines[2] == ("Driver 580.1, CUDA 13.0, Python 3.12, torch 2.11.0; commit abc; 1 GPU(s) of 79.2 GiB.")
    assert "Not installed: vllm." in lines and "No clocks and no power: nvidia-ml-py is not installed." in lines
    assert any(line.startswith("| bench | passed |") and line.endswith("| a \\| b |") for line in lines)
    assert "| vllm | not run |  |  |  |  |  | the Python package no_such_module is not installed |" in lines
    assert f"| {row('x', 1)['case']} | 2.000 | 1.660 | 1.20 | 1.25 met | Liger | 4.000 | 1.0e-06 |" in lines
    assert "| canary | p99_to_threshold | 0.12 |" in lines


def test_figures_of_a_step_that_was_stopped_count_and_are_marked(found: dict[str, Any], tmp_path: Path):
    (tmp_path / "figures.json").write_text(json.dumps({"rows": [row("srpo_kernels", 2e-3)]}))
    for name, ending in (("failed", "exit 1"), ("time-out", "sleep 60")):
        check(tmp_path, Step("bench", f"cp OUT/figures.json OUT/NAME.json; {ending}", limit=1), only=("bench",))
        text = (tmp_path / "results.md").read_text()
        assert f"| {row('x', 1)['case']} (step: {name}) | 2.000 | 1.660 | 1.20 | 1.25 met |" in text
    check(tmp_path, Step("bench", "true"), only=("bench",))
    assert "2.000" not in (tmp_path / "results.md").read_text(), "figures of an earlier run"


def test_the_commit_of_a_copy_without_git(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SRPO_COMMIT", "v0.1-3-gabc")
    monkeypatch.setattr(gpu_host, "_output", lambda command: "")
    assert gpu_host.commit() == "v0.1-3-gabc"
    monkeypatch.delenv("SRPO_COMMIT")
    assert gpu_host.commit() == "unknown"
    monkeypatch.setattr(gpu_host, "_output", lambda command: "v0.1-4-gdef")
    monkeypatch.setenv("SRPO_COMMIT", "v0.1-3-gabc")
    assert gpu_host.commit() == "v0.1-4-gdef"


@pytest.mark.parametrize("changed, limit", [({}, 1.25), ({"dtype": "fp32"}, None), ({"rows": 128}, None),
                                            ({"case": "token_logprobs forward bf16 1x1"}, 1.1),
                                            ({"case": "token_logprobs forward+backward bf16 1x1"}, 1.15),
                                            ({"case": "group_advantage forward bf16 1"}, None)])
def test_targets(changed: dict[str, Any], limit: float | None):
    assert gpu_report.target(row("srpo_kernels", 1.0, **changed)) == limit


class Nvml(SimpleNamespace):
    """A GPU that idles, then works."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksThrottleReasonGpuIdle, nvmlClocksThrottleReasonSwPowerCap = 1, 4
    nvmlClocksThrottleReasonAll = 7
    reads = 0

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        assert handle == "GPU-1"
        self.reads += kind == self.NVML_CLOCK_SM
        return 1980 if self.reads > 1 else 345

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=self.reads * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=100 * (self.reads > 1))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return 4 if self.reads > 1 else 1


def test_clocks_and_power_are_those_of_a_working_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_host.Sampler, "SECONDS", 0.001)
    device = Nvml()
    with gpu_host.Sampler("GPU-1", device) as sampler:
        deadline = time.monotonic() + 30
        while device.reads < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
    figures = sampler.figures
    assert figures is not None and figures["sm_mhz"] == [1980, 1980, 1980] and figures["power_w"] == [700.0] * 3
    assert figures["memory_gib"][0] == 1.0 < figures["memory_gib"][2]
    assert figures["throttled"] == ["SwPowerCap"] and "temperature_c" not in figures


def test_a_driver_that_does_not_know_the_gpu_costs_the_clocks_alone(monkeypatch: pytest.MonkeyPatch):
    def unknown(uuid: str) -> None:
        raise Nvml.NVMLError("not found")

    library = Nvml(nvmlInit=lambda: None)
    monkeypatch.setattr(gpu_host, "_has_module", lambda name: True)
    monkeypatch.setattr(gpu_host.importlib, "import_module", lambda name: library)
    assert gpu_host.nvml("GPU-1") == (library, "")
    monkeypatch.setattr(library, "nvmlDeviceGetHandleByUUID", unknown)
    assert gpu_host.nvml("GPU-1") == (None, "NVML does not answer: not found")


def test_the_real_steps_are_well_formed():
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    host = gpu_host.Host(FOUND, set(names))
    for step in STEPS:
        assert step.limit < 480, step.name
        for need in step.needs:
            host.lacks(need)
            assert not need.startswith("step:") or need.removeprefix("step:") in names[:names.index(step.name)]
        words = shlex.split(step.command)
        modules = [word for before, word in zip(words, words[1:], strict=False) if before == "-m" and "." in word]
        assert all(gpu_host._has_module(module) for module in modules), step.name
        assert all((gpu_host.ROOT / word).exists() for word in words if word.endswith((".py", ".yaml"))), step.name


@pytest.mark.parametrize("kernel", ["statistics-cpp"])
def test_kernels_for_the_sanitizer(kernel: str, capsys: pytest.CaptureFixture):
    gpu_kernels.main([kernel, "--device", "cpu"])
    assert "agrees with plain torch" in capsys.readouterr().out


def test_growth_is_that_of_the_last_quarter_over_the_second():
    flat = [{"resident": size, "aliased": 8, "moved": 0} for size in (10, 50, 100, 100, 90, 95, 100, 99)]
    assert bench_memory.growth(flat) == {"resident": 1.0}
    leak = [{"resident": 100 + step, "aliased": 8, "moved": 0} for step in range(100)]
    ratios = bench_memory.growth(leak)
    assert ratios["resident"] == pytest.approx(199 / 149)
    document = {"steps": leak, "kv_cache": 0}
    assert bench_memory.wrong(document, ratios) == ["resident grew by 33.6%"]
    ratios = {"resident": 1.02, "generating": 1.009, "peak": 1.04, "allocated": 1.06}
    assert bench_memory.wrong(document, ratios) == ["resident grew by 2.0%", "allocated grew by 6.0%"]


def test_moved_weights_and_a_kv_cache_that_stays_are_named():
    steps = [{"generating": 20 * 2**30, "updating": 19 * 2**30, "moved": 3}]
    found = bench_memory.wrong({"steps": steps, "kv_cache": 4 * 2**30}, {})
    assert found == ["3 bytes of weights were moved in a step",
                     "the update found 1.00 GiB freed, the KV cache is 4.00"]


def test_the_canary_distribution():
    steps = [np.array([0.0, 0.1, 0.2]), np.array([0.4, 0.3])]
    found = bench_canary.distribution(steps)
    assert found["max_of_steps"] == [0.2, 0.4] and found["max"] == 0.4 and found["0.5"] == pytest.approx(0.2)
    assert found["tokens"] == 5 and found["mean"] == pytest.approx(0.2)
