"""What `gpu_check` found, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.compare import OURS

TARGETS = (("policy_loss forward+backward", 1.25), ("token_logprobs forward+backward", 1.15),
           ("token_logprobs forward", 1.1), ("linear_policy_loss forward+backward", 1.15))
"""Warm time over the floor, at most; by the beginning of a case, for bf16 and 8,192 rows or more."""


def rows(out: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the steps measured, ours and peers'; not what could not run. Also from steps that failed or were stopped,
    whose `status` says so."""
    found: list[dict[str, Any]] = []
    for result in results.values():
        if result.get("figures"):
            document = json.loads((out / result["figures"]).read_text())
            found += [row | {"status": result["status"]} for row in document.get("rows", ())
                      if "warm" in row or "ratios" in row]
    return found


def markdown(document: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    found, steps = document["environment"], document["steps"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    absent = ", ".join(name for name, version in found["versions"].items() if not version)
    lines = [
        f"# {found['device']}", "",
        f"Driver {found['driver'] or 'unknown'}, CUDA {found['cuda']}, Python {found['python']}, {versions}; "
        f"commit {found['commit']}; {found['gpus']} GPU(s) of {found['memory_gib']} GiB.", ""]
    if absent:
        lines += [f"Not installed: {absent}.", ""]
    if found["nvml"] != "read":
        lines += [f"No clocks and no power: {found['nvml']}.", ""]
    lines += ["Clocks and power are the medians of the moments of a step in which a kernel ran.", "",
              *table(["step", "result", "s", "SM MHz", "memory MHz", "W", "throttled by", "says"],
                     [_step(name, result) for name, result in steps.items()])]
    kernels = [row for row in measured if "warm" in row]
    if kernels:
        lines += ["", "Times are warm medians; the best peer is the fastest other implementation of the same run.", "",
                  *table(["case", "ms", "floor ms", "x floor", "at most", "best peer", "its ms", "error"],
                         [_kernel(row, kernels) for row in kernels if row["implementation"] in OURS])]
    if whole := [row for row in measured if "ratios" in row and row["implementation"] in OURS]:
        lines += ["", "Ratios of the trainer's own parts; the benchmarks' docstrings say of what.", "",
                  *table(["case", "ratio", "value"], [[_case(row), name, f"{value:.3g}"] for row in whole
                                                      for name, value in row["ratios"].items()])]
    return "\n".join(lines) + "\n"


def _step(name: str, result: dict[str, Any]) -> list[str]:
    gpu = result.get("gpu") or {}
    medians = [f"{gpu[key][1]:g}" if key in gpu else "" for key in ("sm_mhz", "memory_mhz", "power_w")]
    seconds = f"{result['seconds']:g}" if "seconds" in result else ""
    return [name, result["status"], seconds, *medians, ", ".join(gpu.get("throttled", ())), result["says"]]


def _kernel(row: dict[str, Any], measured: list[dict[str, Any]]) -> list[str]:
    peers = [peer for peer in measured if peer["case"] == row["case"] and peer["implementation"] not in OURS]
    best = min(peers, key=lambda peer: peer["warm"]["median"], default=None)
    limit = target(row)
    verdict = "" if limit is None else f"{limit:g}" + (" missed" if row["warm"]["to_floor"] > limit else " met")
    peer = [best["implementation"], f"{best['warm']['median'] * 1e3:.3f}"] if best else ["none ran", ""]
    return [_case(row), f"{row['warm']['median'] * 1e3:.3f}", f"{row['floor'] * 1e3:.3f}",
            f"{row['warm']['to_floor']:.2f}", verdict, *peer, f"{row['value_error']:.1e}"]


def _case(row: dict[str, Any]) -> str:
    return row["case"] if row["status"] == "passed" else f"{row['case']} (step: {row['status']})"


def target(row: dict[str, Any]) -> float | None:
    if row["dtype"] != "bf16" or row["rows"] < 8192:
        return None
    return next((limit for case, limit in TARGETS if row["case"].startswith(case + " ")), None)


def table(head: list[str], body: list[list[str]]) -> list[str]:
    """Lines of Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *body)]
    return [f"| {' | '.join(line)} |" for line in cells]
