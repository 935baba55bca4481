"""A model is sampled in its own precision unless another is named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from srpo.rollout.precision import own


def write(folder, described, stored=None):
    (folder / "config.json").write_text(json.dumps(described))
    if stored is not None:
        save_file({"a": torch.zeros(2, dtype=stored)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("described", "stored", "precision"), [
    ({"torch_dtype": "float32"}, None, "float32"),
    ({"dtype": "float32"}, None, "float32"),
    ({"dtype": "bfloat16", "torch_dtype": "float32"}, torch.float32, "auto"),  # the newer key, and vLLM's choice
    ({}, torch.float32, "float32"),
    ({}, torch.bfloat16, "auto"),
    ({}, None, "auto"),
])
def test_own_precision(tmp_path, described, stored, precision):
    assert own(write(tmp_path, described, stored)) == precision


@pytest.mark.parametrize(("named", "used"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_a_standalone_engine_does_not_round_float32(tmp_path, monkeypatch, named, used):
    from srpo.rollout import standalone

    given = {}
    monkeypatch.setattr(standalone, "LLM", lambda model, **settings: given.update(settings))
    monkeypatch.setattr(standalone, "Tokenizer", lambda *_: None)
    standalone.StandaloneEngine(str(write(tmp_path, {"torch_dtype": "float32"})), "plain", 8, dtype=named)
    assert given["dtype"] == used
