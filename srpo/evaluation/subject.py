"""What is evaluated: a Hugging Face directory, or a run's model with the run's own settings."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo import config as configuration
from srpo.config import Config
from srpo.errors import UserError
from srpo.evaluation.data import sha256
from srpo.files import write_text

log = logging.getLogger(__name__)

_PARTS = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt")
"""Suffixes of the files that a model consists of."""


@dataclass(frozen=True)
class Subject:
    """`folder` holds the weights; of a run `config` is its configuration, and `checkpoint` the one exported, where
    `hf/` is not there yet."""

    folder: Path
    config: Config | None = None
    checkpoint: str | None = None

    def identity(self) -> dict[str, Any]:
        """Where it is, and SHA-256 of its files, one by one and together; seconds where there are gigabytes."""
        paths = sorted(p for p in self.folder.iterdir() if p.is_file() and p.name.endswith(_PARTS))
        with ThreadPoolExecutor() as pool:  # hashing lets other threads run
            hashes = dict(zip([p.name for p in paths], pool.map(sha256, paths), strict=True))
        if not any(name.endswith((".safetensors", ".bin")) for name in hashes):
            raise UserError(f"{self.folder}: holds no weights (*.safetensors)")
        together = hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()
        return {"path": str(self.folder), "checkpoint": self.checkpoint, "sha256": together, "files": hashes}


def find(target: Path, out: Path) -> Subject:
    """The model at `target`, or the model of the run there: `hf/` when it has finished, else its latest checkpoint,
    exported to OUT/model. Raises UserError when it is neither."""
    if (target / "config.json").is_file():
        return Subject(target)
    if not (target / "config.yaml").is_file():
        raise UserError(f"{target}: neither a Hugging Face directory (config.json) nor a run folder (config.yaml)")
    config = configuration.load(target / "config.yaml")
    if (target / "hf" / "config.json").is_file():
        return Subject(target / "hf", config)
    latest = target / "checkpoints" / "latest"
    if not latest.is_file():
        raise UserError(f"{target}: the run has neither finished (hf/) nor saved a checkpoint")
    return Subject(out / "model", config, _export(target, latest, out))


def _export(run: Path, latest: Path, out: Path) -> str:
    """Write the model of the checkpoint that `latest` names to OUT/model, unless it is there; returns its name. In a
    process of its own: Megatron-Core holds a process group and memory that are not for vLLM."""
    checkpoint, note, folder = latest.read_text().strip(), out / "checkpoint", out / "model"
    if note.is_file():
        if note.read_text() != checkpoint:
            raise UserError(f"{folder}: is of {note.read_text()}, and the run is at {checkpoint} by now; choose "
                            "another --out, or delete this one to begin anew")
        return checkpoint
    log.info("%s: exporting %s to %s", run, checkpoint, folder)
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
             and not k.startswith(("MASTER_", "TORCHELASTIC_"))}
    done = subprocess.run([sys.executable, "-m", "srpo", "export", str(run), str(folder)], env=alone, text=True,
                          stderr=subprocess.PIPE)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("srpo: error: ")
        raise UserError(f"{run}: {checkpoint} cannot be exported: {why}")
    if latest.read_text().strip() != checkpoint:  # the run went on meanwhile: which of the two it is nobody knows
        return _export(run, latest, out)
    write_text(note, checkpoint)
    return checkpoint
