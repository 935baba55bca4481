"""docs/performance.md predicts what the benchmarks' own counts predict, and reports what the compiler's reports say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import bench_linear, bench_logprob, bench_policy_loss, gpu_report
from benchmarks.inputs import Case

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "performance.md").read_text()
RATES = {"read": 3.0e12, "copy": 3.0e12, "write": 3.0e12, "matrix": 798e12}
WORK = {"token_logprobs": bench_logprob.work, "policy_loss": bench_policy_loss.work,
        "linear_token_logprobs": bench_linear.work, "linear_policy_loss": bench_linear.work}
LABEL = re.compile(r"(\w+) (forward|forward\+backward) (\w+) ([0-9x]+)(?: masked (\d+)%)?$")


def table(head: str) -> list[list[str]]:
    """Cells of the table that begins with this heading."""
    lines = DOCUMENT[DOCUMENT.index(f"| {head} |"):].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("cells", table("case"), ids=lambda cells: cells[0])
def test_predictions(cells: list[str]):
    label, predicted, limit, measured = cells
    found = LABEL.match(label)
    assert found, label
    op, direction, dtype, shape, masked = found.groups()
    case = Case(op, dtype, *map(int, shape.split("x")), backward="+" in direction, masked=int(masked or 0) / 100)
    assert case.label == label
    assert predicted == f"{sum(work / RATES[kind] for kind, work in WORK[op](case).items()) * 1e3:.2f}"
    target = gpu_report.target({"case": label, "dtype": dtype, "rows": case.rows})
    assert limit == ("" if target is None else f"{target:g}")
    assert measured == "not measured: no GPU yet" or re.match(r"\d", measured)


def test_compiler_facts():
    results = ROOT / "benchmarks" / "results"
    triton = json.loads((results / "static-triton-sm90a.json").read_text())["kernels"]
    cuda = json.loads((results / "static-cuda-sm90a.json").read_text())["kernels"]
    facts = {f"Triton, {k['kernel']}": (k["registers"], k["spills"], k["shared_bytes"], k["instructions_per_logit"])
             for k in triton if k["dtype"] == "bf16"}
    facts |= {f"CUDA, {k['name']}": (k["registers"], k["spill_bytes"], k["shared_bytes"],
                                     [k["instructions_per_element"]] if k["instructions_per_element"] else [])
              for k in cuda if k["dtype"] == "bfloat16"}
    rows = {cells[0]: cells[1:] for cells in table("kernel")}
    assert rows.keys() == facts.keys()
    for name, (registers, spills, shared, instructions) in facts.items():
        cells = rows[name]
        assert cells[:3] == [str(registers), str(spills), str(shared)], name
        assert cells[4] == " + ".join(map(str, instructions)), name
        issue = sum(instructions) * 8192 * 152064 / (132 * 128 * 1.7e9)
        assert cells[5] == (f"{issue * 1e3:.2f}" if instructions else "")
