"""How to sample: what the command line says, else what the run's configuration says, else defaults of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srpo.config import Config, Reward, Style, answer_style, stop_strings
from srpo.errors import UserError
from srpo.evaluation.metrics import MAX_SAMPLES
from srpo.files import write_json

BATCH = 64
"""Responses of a chunk, where nothing else is said: few, so that many replicas get equal shares of few problems."""


@dataclass(frozen=True)
class Settings:
    """`template`, `style` and `stop` are as data.template, reward.style and rollout.stop, `dtype` as vLLM's; `chunk` is
    in problems."""

    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    template: str
    style: Style
    stop: list[str]
    chunk: int
    tensor: int
    dtype: str

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "chunk", "tensor"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} = {getattr(self, name)}: must be at least 1")
        if self.samples > MAX_SAMPLES:
            raise UserError(f"--samples = {self.samples}: at most {MAX_SAMPLES}")
        if not 0 <= self.temperature <= 100:
            raise UserError(f"--temperature = {self.temperature}: must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p = {self.top_p}: must be above 0 and at most 1")
        if self.seed < 0:
            raise UserError(f"--seed = {self.seed}: must be 0 or more")
        if self.temperature == 0 and self.samples > 1:
            raise UserError(f"--temperature = 0 gives the same response {self.samples} times (--samples); take one "
                            "sample, or a temperature above 0")


def settle(given: dict[str, Any], config: Config | None) -> Settings:
    """Fill what is None in `given`, whose names are the fields of Settings."""
    chosen = {k: v for k, v in given.items() if v is not None}
    defaults: dict[str, Any] = {"samples": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 4096, "seed": 1,
                                "template": "chat", "tensor": 1, "dtype": "auto"}
    if config:
        defaults |= {"samples": config.eval.samples, "temperature": config.eval.temperature,
                     "max_tokens": config.rollout.max_response_tokens, "template": config.data.template,
                     "dtype": config.model.dtype}
        if "samples" not in chosen and chosen.get("temperature", defaults["temperature"]) == 0:
            defaults["samples"] = 1
    merged = defaults | chosen
    kept = config if "template" not in chosen else None  # what a run says of its responses goes with its template
    merged.setdefault("stop", stop_strings(kept.rollout.stop if kept else None, merged["template"]))
    merged.setdefault("style", answer_style(kept.reward.style if kept else None, merged["template"]))
    merged.setdefault("chunk", max(1, BATCH // max(1, merged["samples"])))
    return Settings(**merged)


def reward(settings: Settings, config: Config | None, allow_unsafe_sandbox: bool) -> Reward:
    """What the graders are told: the correctness of training and nothing else."""
    base = config.reward if config else Reward()
    judges = [custom for custom in base.custom if custom.role == "correct"]
    return Reward(format=0.0, custom=judges, style=settings.style, timeout=base.timeout,
                  allow_unsafe_sandbox=allow_unsafe_sandbox or base.allow_unsafe_sandbox)


def ks(text: str | None, samples: int) -> list[int]:
    """The k of pass@k and majority@k: as given, `1,4,16`; else the powers of two up to the number of samples, and that
    number."""
    if text is None:
        return sorted({samples, *(2**i for i in range(samples.bit_length()) if 2**i <= samples)})
    try:
        found = sorted({int(k) for k in text.split(",")})
    except ValueError:
        raise UserError(f"-k {text}: write whole numbers with commas between them, as in 1,4,16") from None
    for k in found:
        if not 1 <= k <= samples:
            raise UserError(f"-k {k}: must be from 1 to the number of samples, which is {samples} (--samples)")
    return found


def claim(out: Path, settings: Settings, model: str, data: dict[str, str], versions: dict[str, str]) -> None:
    """Make `out` the folder of this evaluation, or find that it is. Raises UserError when it is one with other settings
    (also of what could change the samples: the model's and the problems' digests, versions, device), or something
    else."""
    key = asdict(settings) | {"model": model} | {f"data {name}": digest for name, digest in data.items()} | versions
    file = out / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text())
        for name in dict.fromkeys([*key, *before]):
            if key.get(name) != before.get(name):
                raise UserError(f"{out}: was begun with {_said(name, before)}, now {_said(name, key)}; choose another "
                                "--out, or delete it to begin anew")
    else:
        write_json(file, key)


def _said(name: str, values: dict[str, Any]) -> str:
    value = values.get(name)
    return f"no {name}" if value is None else f"{name} = {value[:12] if isinstance(value, str) else value}"


def check_folder(out: Path, ours: Sequence[str]) -> None:
    """Raise UserError when `out` holds something and is no evaluation's folder, nor what a kill left of one."""
    if out.is_file() or out.is_dir() and not (out / "settings.json").exists() and (
            other := sorted(p.name for p in out.iterdir() if p.name not in ours and p.suffix != ".part")):
        what = "is a file" if out.is_file() else f"holds {other[0]} and no settings.json"
        raise UserError(f"{out}: {what}; give --out a new directory")
