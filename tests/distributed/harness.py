"""Many cases in one torchrun launch, each reported by pytest under its own name.

A test file holds `measure(name) -> dict[str, float]`, run on every rank, and ends with `harness.main(measure, names)`;
its pytest functions read `results(__file__, ranks, directory)[name]`, whose first call launches the file. Values are
merged over ranks by their maximum.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 240  # seconds a launch


class Result(dict[str, float]):
    """What a case measured; reading from a case that failed raises what it raised."""

    def __init__(self, measured: dict[str, Any]) -> None:
        super().__init__(measured)
        assert "error" not in self, f"\n{self['error']}"


@functools.cache
def _launch(file: str, ranks: int, directory: Path) -> dict[str, Any]:
    out = directory / f"{Path(file).stem}-{ranks}.json"
    paths = [str(ROOT), str(ROOT / "kernels"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CASES_OUT": str(out)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), file]
    done = subprocess.run(command, env=env, cwd=directory, capture_output=True, text=True, timeout=LIMIT)
    assert out.exists(), f"no case ran:\n{done.stdout[-2000:]}{done.stderr[-8000:]}"
    return json.loads(out.read_text())


def results(file: str, ranks: int, directory: Path) -> Callable[[str], Result]:
    """The results of all cases of `file` for this many ranks, in a directory they may use; launched once."""
    measured = _launch(file, ranks, directory)

    def result(name: str) -> Result:
        stopped = next((f"{n}:\n{m['error']}" for n, m in measured.items() if "error" in m), "the launch died")
        return Result(measured.get(name, {"error": f"not reached; {stopped}"}))

    return result


def main(measure: Callable[[str], dict[str, float]], names: Callable[[int], Iterable[str]]) -> None:
    """Body of a launched file: every case of names(ranks) in turn, until one fails (its collectives are then lost)."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    out, measured = Path(os.environ["CASES_OUT"]), {}
    for name in names(int(os.environ["WORLD_SIZE"])):
        try:
            mine = measure(name)
        except BaseException:
            measured[name] = {"error": f"rank {os.environ['RANK']}: {traceback.format_exc()}"}
            out.write_text(json.dumps(measured))
            os._exit(1)
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine)
        measured[name] = {key: max(m[key] for m in every if key in m) for key in set().union(*every)}
        if dist.get_rank() == 0:
            out.write_text(json.dumps(measured))
    dist.barrier()
    dist.destroy_process_group()
