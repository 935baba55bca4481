"""A world small enough that a whole run costs little more than its start: its sizes, and runs in it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from launches import Launch
from transformers import AutoConfig

from srpo.rollout.reshard import Plan, plan
from srpo.rollout.shares import Layout

MATHS, CODE = 5, 4  # five: an epoch's last step has a prompt for one of two replicas


@dataclass(frozen=True)
class World:
    """A model, its data and a configuration; `folder/NAME` is the run NAME."""

    folder: Path

    def config(self, run: str, **sections: Any) -> Path:
        """Write the configuration of a run, some of its sections changed, and return its path."""
        data = self.folder / "data"
        tree: dict[str, Any] = {
            "run": str(self.folder / run),
            "model": {"path": str(data / "model"), "dtype": "float32"},
            "data": {"train": [str(data / "train.jsonl")], "eval": [str(data / "eval.jsonl")], "template": "plain",
                     "max_prompt_tokens": 32},
            "batch": {"prompts": 4, "samples": 4, "micro_batch": 4},
            "rollout": {"max_response_tokens": 32, "kv_cache_gib": 0.03, "max_sequences": 32, "canary": 1e-5},
            "optimizer": {"lr": 1e-4},
            "reward": {"workers": 1, "timeout": 60.0},
            "warm_start": {"data": [str(data / "worked.jsonl")], "steps": 100, "batch": 32, "lr": 3e-3},
            "stages": [{"name": "sums", "domains": ["math"], "until": "epochs", "epochs": 2},
                       {"name": "programs", "domains": ["math", "code"], "until": "epochs", "epochs": 2}],
            "resample": {"drop_at": 0.75},
            "eval": {"samples": 2},
            "checkpoint": {"every": 2, "keep": 3},
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
        file = self.folder / f"{run}.yaml"
        file.write_text(yaml.safe_dump(tree))
        return file

    def train(self, run: str, ranks: int = 2, before: tuple[str, ...] = (), **sections: Any) -> Launch:
        return Launch("-m", "srpo", "train", self.config(run, **sections), ranks=ranks, folder=self.folder,
                      before=before)

    def launch(self, run: str, ranks: int = 2, before: tuple[str, ...] = (), env: dict[str, str] | None = None,
               **sections: Any) -> Launch:
        """The same by launch/torchrun.sh, which starts failed ranks again."""
        return Launch(self.config(run, **sections), ranks=ranks, folder=self.folder, before=before, script=True,
                      **(env or {}))

    def warm(self) -> dict[str, Any]:
        """Sections of a run that starts from the warm-started policy of the base run."""
        return {"model": {"path": str(self.folder / "base" / "warm")}, "warm_start": None}

    def copy(self, run: str, *, step: int, of: str = "base") -> Path:
        """A copy of a run as it would be had it stopped after a step."""
        folder = self.folder / run
        shutil.copytree(self.folder / of, folder, ignore=shutil.ignore_patterns("hf", "tb"))
        (folder / "checkpoints" / "latest").write_text(f"step-{step:08d}")
        return folder

    def plan(self, train: tuple[int, int], rollout: tuple[int, int]) -> Plan:
        """How weights get from a training layout (tensor, pipeline) to one of vLLM's."""
        hf = AutoConfig.from_pretrained(self.folder / "data" / "model")
        return plan(hf, Layout(*train), Layout(*rollout), itemsize=4)
