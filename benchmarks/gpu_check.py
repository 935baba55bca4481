"""Everything that only an NVIDIA GPU can show, in one command: `make gpu-check`, or

    python -m benchmarks.gpu_check [--out benchmarks/results/DEVICE-DATE] [--only STEP...]

Runs the steps of gpu_steps.py one after the other with this interpreter, each in a process of its own and under a
limit, and writes OUT/results.json, OUT/results.md, and for each step OUT/NAME.log and perhaps OUT/NAME.json. Run again
after a cut, with the same --out, it goes on where it was: a step that ended, well or badly, is repeated only for
another commit or with --only; one that lacked something is tried again. In a copy without git SRPO_COMMIT says which
commit it is. Nothing is downloaded, and no setting of the GPU is changed.

Exit code: 0 when all that could run passed, 1 when a step failed, reached its limit or has to go on, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import gpu_report
from benchmarks.gpu_host import CUDA, ROOT, Host, Sampler, nvml, probe
from benchmarks.gpu_steps import STEPS, Step
from srpo.files import write_text

ENDED = ("passed", "failed", "time-out")
MORE = 75
"""Exit code of a step that goes on where it was when it is run again."""
ALONE = {"HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOGGING_LEVEL": "INFO"}
"""Unless the environment says otherwise: nothing is looked up or downloaded, and a log says what vLLM waits for."""


def main(arguments: list[str] | None = None, steps: Sequence[Step] = tuple(STEPS)) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--only", metavar="STEP", action="extend", nargs="+",
                        help="these steps, even if they ended before")
    options = parser.parse_args(arguments)
    names = [step.name for step in steps]
    if unknown := [name for name in options.only or () if name not in names]:
        parser.error(f"--only {unknown[0]}: no such step; there are {', '.join(names)}")
    found = probe()
    if not found["gpus"]:
        print(f"benchmarks.gpu_check: {sys.executable} finds no NVIDIA GPU here, so nothing was run: {found['why']}",
              file=sys.stderr)
        return 2
    out = (options.out or ROOT / "benchmarks" / "results" / folder_name(found["device"])).resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a step in flight is ended too
    results = run_all(steps, out, found, options.only)
    print(f"\n{out / 'results.md'}")
    chosen = [result for name, result in results.items() if not options.only or name in options.only]
    return 1 if any(result["status"] not in ("passed", "not run") for result in chosen) else 0


def folder_name(device: str) -> str:
    """NVIDIA H100 80GB HBM3 -> h100-80gb-hbm3-2026-01-31"""
    return f"{re.sub('[^a-z0-9]+', '-', device.lower().removeprefix('nvidia ')).strip('-')}-{date.today()}"


def run_all(steps: Sequence[Step], out: Path, found: dict[str, Any], only: list[str] | None) -> dict[str, Any]:
    """Results by step, in the steps' order, written after each step."""
    file = out / "results.json"
    results: dict[str, Any] = json.loads(file.read_text())["steps"] if file.exists() else {}
    library, unread = nvml(found.get("uuid", ""))
    for step in steps:
        if only and step.name not in only:
            continue
        before = results.get(step.name)
        if not only and before and before["status"] in ENDED and before["commit"] == found["commit"]:
            print(f"{step.name:26}{before['status']} before", flush=True)
            continue
        passed = {name for name, result in results.items() if result["status"] == "passed"}
        lacking = [reason for need in step.needs if (reason := Host(found, passed).lacks(need))]
        if lacking:
            result: dict[str, Any] = {"status": "not run", "says": "; ".join(lacking)}
        else:
            print(f"{step.name:26}", end="", flush=True)
            with Sampler(found.get("uuid", ""), library) as sampler:
                result = run(step, out, found["commit"])
            result["gpu"] = sampler.figures
        results[step.name] = result | {"commit": found["commit"]}
        print(f"{f'{step.name:26}' if lacking else ''}{result['status']:12}{result['says']}", flush=True)
        results = {each.name: results[each.name] for each in steps if each.name in results}
        document = {"environment": found | {"nvml": unread or "read"}, "steps": results}
        write_text(file, json.dumps(document, indent=1) + "\n")
        write_text(out / "results.md", gpu_report.markdown(document, gpu_report.rows(out, results)))
    return results


def run(step: Step, out: Path, commit: str) -> dict[str, Any]:
    """Status, seconds and last line of a step, which has the commit in SRPO_COMMIT. Its output goes to OUT/NAME.log."""
    words = {"PYTHON": shlex.quote(sys.executable), "OUT": shlex.quote(str(out)), "NAME": step.name}
    command = re.sub(r"\b(PYTHON|OUT|NAME)\b", lambda word: words[word[0]], step.command)
    path = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = ALONE | os.environ | {
        "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "SRPO_COMMIT": commit,
        "PATH": f"{os.environ['PATH']}{os.pathsep}{CUDA}"} | step.env
    log, figures = out / f"{step.name}.log", out / f"{step.name}.json"
    figures.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(step.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also what it left running
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    status = "time-out" if code is None else {0: "passed", MORE: "unfinished"}.get(code, "failed")
    says = lines[-1][:200] if lines else ""
    if code == MORE:
        says = "goes on in the next run; " + says
    elif code is None:
        says = f"stopped after {step.limit} s; " + says
    elif code:
        says = f"exit code {code}; " + says
    return {"status": status, "says": says, "seconds": round(time.monotonic() - began, 1), "command": command,
            "figures": figures.name if figures.exists() else None}


if __name__ == "__main__":
    sys.exit(main())
