"""Many cases in one torchrun launch, each reported by pytest under its own name: starting ranks costs more than a case.

A test file has `measure(name) -> dict`, which runs on every rank, and parametrizes the fixture `measured` (conftest.py)
with the `Case`s whose results it wants. All selected cases of all files that need the same number of ranks share a
launch. Numbers are merged over ranks by their maximum.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 540  # seconds a launch; usually two minutes on two busy cores
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(HERE)])


class Case(NamedTuple):
    """A name that `measure` of the test file knows, and the number of ranks to run it on."""

    ranks: int
    name: str

    def __str__(self) -> str:
        return f"{self.ranks}-{self.name}"


def launch(ranks: int, cases: list[tuple[str, str]], directory: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Results of (module, case name)s on `ranks` ranks. A case that fails costs the others a new launch, no more."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    while remaining := [case for case in cases if case not in found]:
        out = directory / f"{ranks}.jsonl"
        out.write_text("")
        env = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += [__file__, str(out), json.dumps(remaining)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert lines, f"no case ran:\n{done.stdout[-2000:]}{done.stderr[-8000:]}"
        found |= {(module, name): measured for module, name, measured in lines}
    return found


def run(out: Path, cases: list[tuple[str, str]]) -> None:
    """Body of every launched rank."""
    import torch
    import torch.distributed as dist
    from models import regroup

    torch.set_num_threads(1)
    regroup()
    measures = {module: importlib.import_module(module).measure for module, _ in cases}
    gc.freeze()  # Megatron collects garbage at every save, and looks through all that was imported
    for module, name in cases:
        directory = out.parent / module
        directory.mkdir(exist_ok=True)
        os.chdir(directory)
        try:
            mine = measures[module](name)
        except BaseException:
            with open(out, "a") as file:
                file.write(json.dumps([module, name, {"error": traceback.format_exc()}]) + "\n")
            os._exit(1)  # the other ranks may wait for this one in a collective
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine)
        if dist.get_rank() == 0:
            merged = {key: max(m[key] for m in every if key in m) for key in set().union(*every)}
            with open(out, "a") as file:
                file.write(json.dumps([module, name, merged]) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), [(module, name) for module, name in json.loads(sys.argv[2])])
