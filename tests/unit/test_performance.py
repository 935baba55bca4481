"""docs/performance.md predicts what the benchmarks' own counts predict, and reports what the compiler's reports say."""

from __future__ import annotations

import json
import re
from math import sqrt
from pathlib import Path

import pytest

from benchmarks import bench_linear, bench_logprob, bench_policy_loss, gpu_report
from benchmarks.inputs import DTYPES, Case
from benchmarks.static_triton import H100

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


def test_the_second_sweep():
    """By the formulas under the table, of rows that the tiles let be live."""
    rows = {cells[0]: cells[1:] for cells in table("the cache of 50 MiB")}
    head = DOCUMENT[DOCUMENT.index("| the cache of 50 MiB |"):].splitlines()[0]
    cases = [cell.split() for cell in head.strip("| ").split(" | ")[1:]]
    assert len(cases) == 4
    for column, (dtype, vocabulary) in enumerate(cases):
        row = int(vocabulary) * DTYPES[dtype].itemsize
        live = H100.loss_tile(row).programs * H100.processors * row
        c = H100.l2_bytes / live
        found = (c, c / 1.5, 3 - sqrt(9 - 2 * c), (4 - sqrt(16 - 3 * c)) / 1.5, 0)
        want = [f"{live / 2**20:.1f}", *(f"{1.5 - min(1, x) / 2:.2f}" for x in found)]
        assert [cells[column] for cells in rows.values()] == want
    c = H100.l2_bytes / (132 * 152064 * 2)
    assert f"({1.5 - (2 - sqrt(4 - 2 * c)) / 2:.2f} in place of 1.26)" in DOCUMENT


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
