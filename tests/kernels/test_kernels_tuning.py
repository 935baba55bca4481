"""The search for better tiles: every candidate runs and is right, under Triton's interpreter, and a line for the table
needs a reason. What is fast, only a GPU shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from srpo_kernels import tiles

from benchmarks import bench_tiles, compare, cuda_tile, gpu_report
from benchmarks.gpu_host import tool
from benchmarks.gpu_steps import STEPS
from benchmarks.tile_fields import CUDA, FIELDS

ROOT = Path(__file__).parents[2]


def test_every_candidate_is_launched_and_checked(tmp_path: Path) -> None:
    out = tmp_path / "tiles.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1",
                   "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.bench_tiles", "--device", "cpu", "--out",
                          str(out)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    document = json.loads(out.read_text())
    assert document["quick"] and not document["lines"]
    for name in tiles.Tiles._fields:
        field = FIELDS[name]
        rows = [row for row in document["rows"] if row["case"].split()[1] == name]
        values = {row["implementation"]: row for row in rows}
        assert values.keys() == {"srpo", *map(bench_tiles.name_of, field.candidates)}
        assert all(row["ratios"]["to_floor"] > 0 and "reason" not in row for row in rows)
        assert values["srpo"]["ratios"]["to_best"] >= 1
        assert values["srpo"]["value"] == getattr(tiles.TABLE[tiles.DEFAULT], name)._asdict()
    assert compare.main([str(out), str(out)]) == 0
    results = {"tiles": {"figures": out.name, "status": "passed"}}
    assert len(gpu_report.rows(tmp_path, results)) == len(document["rows"])


def rows_of(**ratios: float | None) -> list[dict[str, Any]]:
    """Of one case with a spread of 2 %, by the candidate's name; None: left out."""
    return [{"implementation": name} | ({"reason": "spills"} if ratio is None else
                                        {"spread": 0.02, "ratios": {"to_table": ratio}})
            for name, ratio in ratios.items()]


@pytest.mark.parametrize("cases, best", [
    ([{"4x8x2": 0.97, "8x8x2": 0.95}, {"4x8x2": 0.99, "8x8x2": 1.0}], "8x8x2"),
    ([{"4x8x2": 0.97, "8x8x2": 0.90}, {"4x8x2": 1.01, "8x8x2": 1.03}], "4x8x2"),
    ([{"4x8x2": 0.985, "8x8x2": 0.99}, {"4x8x2": 0.985, "8x8x2": 1.0}], None),
    ([{"4x8x2": 0.9, "8x8x2": None}, {"4x8x2": 0.9, "8x8x2": 0.5}], "4x8x2")],
    ids=["the fastest over all cases", "behind in none", "within the spread", "left out of a case"])
def test_a_line_for_the_table_needs_a_reason(cases: list[dict[str, float | None]], best: str | None) -> None:
    found = bench_tiles.better("statistics", [rows_of(**ratios) for ratios in cases])
    assert (found and bench_tiles.name_of(found)) == best


def test_the_line_is_python_for_the_table() -> None:
    for field, value in tiles.TABLE[tiles.DEFAULT]._asdict().items():
        line = bench_tiles.line_for(field, value)
        assert line.startswith(f"{field}=") and line.endswith(f" tiles: {field}'),")
        (again,) = eval(f"dict({line})", vars(tiles)).values()
        assert again[:-1] == value[:-1] and type(again) is type(value)


def test_a_wrong_candidate_shows() -> None:
    """Against what the order of sums may change: an element of a matrix's row by the largest, a value by itself."""
    values, matrix = torch.rand(300, 4) + 1, torch.randn(300, 40)
    assert bench_tiles.difference((values, matrix), (values * (1 + 1e-6), matrix + 1e-6)) < 1
    for at in (0, 299):
        assert bench_tiles.difference((values, matrix), (values, matrix.index_fill(0, torch.tensor(at), 3.0))) > 1
    assert bench_tiles.difference((values,), (values * (1 + 1e-4),)) > 1
    broken = matrix.clone()
    broken[7, 7] = float("nan")
    assert not bench_tiles.difference((broken,), (matrix,)) <= 1


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda _: SimpleNamespace(max_threads_per_multi_processor=1536))
    device = torch.device("cuda:0")
    tile = tiles.Tile(k=2, warps=8, programs=4, chosen_by="")
    assert bench_tiles.unfit(device, tile, 64, 0) is None
    assert bench_tiles.unfit(device, tile, 65, 0) == "65 registers do not fit 4 times"
    assert bench_tiles.unfit(device, tile, 64, 3) == "spills"
    assert bench_tiles.unfit(device, tile._replace(programs=8), 32, 0) == "2048 threads do not fit"
    assert bench_tiles.unfit(device, tiles.Block(32, ""), 255, 0) is None


def test_registers_are_those_of_the_kernel_that_was_launched() -> None:
    class Kernel:
        def run(self, registers: int, *, grid: int) -> SimpleNamespace:
            return SimpleNamespace(n_regs=registers)

    kernel = Kernel()
    result, compiled = bench_tiles.launched_by(kernel, lambda: kernel.run(40, grid=1) and "result")
    assert result == "result" and compiled.n_regs == 40 and "run" not in vars(kernel)


@pytest.mark.skipif(tool("nvcc") is None, reason="no nvcc")
def test_the_cuda_kernels_are_built_with_another_tile() -> None:
    library = cuda_tile.build(cuda_tile.CudaTile(128, 8, 6, ""), "9.0")
    assert library.spills == 0 and 64 < library.registers <= 80
    # 4 rows over 132 x 6 blocks: split into the segments of 2 x 128 x 8 vectors, 12 bytes each a thread.
    assert library.functions.scratch(2, 4, 152064, 1.0, 132) == 4 * 10 * 128 * 12
    assert library.functions.scratch(2, 800, 152064, 1.0, 132) == 0


def test_the_tile_of_the_cuda_kernels_is_found() -> None:
    tile = cuda_tile.in_shape_h()
    assert tile.threads % 32 == 0 and tile.threads * tile.blocks <= 2048
    assert bench_tiles.line_for(CUDA, tile) in (cuda_tile.SOURCES / "shape.h").read_text()


def test_the_steps_of_gpu_check_cover_every_field() -> None:
    commands = " ".join(step.command for step in STEPS if step.name.startswith("tiles-"))
    named = [name for group in commands.split("' (")[1:] for name in group.split(") '")[0].split("|")]
    assert sorted(named) == sorted(FIELDS)
