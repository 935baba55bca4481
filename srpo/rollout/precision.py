"""The precision that a model is sampled in where nobody names one."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open


def own(model: Path) -> str:
    """vLLM's name for the precision that the weights in a Hugging Face directory have: float32, or auto for the others.
    vLLM's own auto would turn float32 into bfloat16, and sample from another model."""
    described = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if named := described.get("dtype") or described.get("torch_dtype"):
        return "float32" if named == "float32" else "auto"
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (it is no mapping)
        return "float32" if "F32" in kinds else "auto"
    return "auto"
