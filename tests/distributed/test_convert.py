"""Hugging Face directories in and out: bit-identical both ways, and bad ones refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from models import MODELS, SHAPE, VOCAB, build, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from srpo.config import Parallel
from srpo.errors import UserError
from srpo.megatron import convert
from srpo.megatron.model import read_hf_config, transformer_config

ROUND_TRIPS = [  # name: tensor x pipeline, model, dtype, and whether source and export are cut into several files
    *(Case(1, f"1x1/{kind}/float32/one") for kind in MODELS),
    *(Case(1, f"1x1/{kind}/bfloat16/several") for kind in MODELS),
    *(Case(2, f"2x1/{kind}/float32/several") for kind in MODELS),
    *(Case(2, f"1x2/{kind}/float32/one") for kind in MODELS),
]


def truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def garble(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"no safetensors at all")


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def index(path: Path, text: str) -> None:
    (path / "model.safetensors").rename(path / "elsewhere.safetensors")
    (path / "model.safetensors.index.json").write_text(text)


NORM, GATE = "model.norm.weight", "model.layers.2.mlp.gate_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no-weights": (
        lambda p: (p / "model.safetensors").unlink(),
        "bad: has neither model.safetensors nor model.safetensors.index.json",
    ),
    "truncated": (truncate, "bad/model.safetensors: cannot be read as safetensors"),
    "garbled": (garble, "bad/model.safetensors: cannot be read as safetensors"),
    "missing-tensor": (lambda p: edit(p, lambda t: t.pop(NORM)), f"bad/model.safetensors: has no tensor {NORM}"),
    "wrong-shape": (
        lambda p: edit(p, lambda t: t.update({GATE: torch.zeros(40, 32)})),
        f"bad/model.safetensors: {GATE} has shape [40, 32]; config.json implies [48, 32]",
    ),
    "bad-index": (lambda p: index(p, "{"), "bad/model.safetensors.index.json: not a safetensors index"),
    "missing-in-index": (
        lambda p: index(p, '{"weight_map": {}}'),
        "bad/model.safetensors.index.json: lists no tensor model.embed_tokens.weight",
    ),
    "missing-file": (
        lambda p: index(p, '{"weight_map": {"model.embed_tokens.weight": "gone.safetensors"}}'),
        "bad/gone.safetensors: no such file, and it should hold model.embed_tokens.weight",
    ),
}
EXISTING = "export-over-something"


def read_all(path: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in path.glob("*.safetensors") for name, t in load_file(file).items()}


def measure(name: str) -> dict[str, Any]:
    if "/" in name:
        return round_trip(name)
    path = Path("bad")
    shutil.rmtree(path, ignore_errors=True)
    make_model("llama").save_pretrained(path)
    if name == EXISTING:
        trainer = build(path)
        trainer.load_hf(path)
        Path("taken").mkdir()
        Path("taken/thesis.tex").write_text("mine")
        with pytest.raises(UserError) as error:
            trainer.export_hf("taken")
        return {"message": str(error.value), "content": Path("taken/thesis.tex").read_text()}
    DAMAGE[name][0](path)
    with pytest.raises(UserError) as error:
        build(path).load_hf(path)
    return {"message": str(error.value)}


def round_trip(name: str) -> dict[str, Any]:
    layout, kind, dtype, files = name.split("/")
    source, target = Path(name, "source"), Path(name, "target")
    several = files == "several"
    model = make_model(kind, getattr(torch, dtype))
    if dist.get_rank() == 0:
        model.save_pretrained(source, max_shard_size="20KB" if several else "1GB")
    dist.barrier()
    convert.SHARD_BYTES = 20_000 if several else 10**9
    tensor, pipeline = (int(n) for n in layout.split("x"))
    trainer = build(source, tensor, pipeline, model=dict(path=str(source), dtype=dtype))
    vocab = [p.data for n, p in trainer.named_parameters() if "embedding" in n or "output_layer" in n]
    for parameter in vocab:
        parameter.fill_(7.0)  # not the zeros that fresh memory happens to hold
    trainer.load_hf(source)
    holds_padding = mpu.get_tensor_model_parallel_rank() == tensor - 1
    padding = float(sum(p[VOCAB - 256 :].abs().sum() for p in vocab) if holds_padding else 0)
    trainer.export_hf(target)
    trainer.export_hf(target)  # over its own earlier one
    if dist.get_rank() != 0:
        return {"padding": padding}
    before, after = read_all(source), read_all(target)
    with torch.no_grad():
        tokens = torch.arange(20)[None]
        loaded = AutoModelForCausalLM.from_pretrained(
            target, dtype=getattr(torch, dtype), attn_implementation="eager"
        )
        logits = [m.to(torch.float32)(tokens).logits for m in (model, loaded)]
    return {
        "names": float(before.keys() != after.keys()),
        "values": float(sum(not torch.equal(before[n], after[n]) for n in before)),
        "files": float((len(list(target.glob("*.safetensors"))) > 1) != several),
        "padding": padding,
        "logits": float((logits[0] - logits[1]).abs().max()),
        "leftovers": float(len(list(target.parent.glob(".*")))),
    }


@pytest.mark.parametrize("measured", ROUND_TRIPS, ids=str, indirect=True)
def test_export_of_import_is_identical(measured: dict[str, float]) -> None:
    assert set(measured.values()) == {0.0}


@pytest.mark.parametrize(
    ("measured", "message"), [(Case(1, name), m) for name, (_, m) in DAMAGE.items()], ids=DAMAGE, indirect=["measured"]
)
def test_unusable_weights_are_named(measured: dict[str, str], message: str) -> None:
    assert message in measured["message"]


@pytest.mark.parametrize("measured", [Case(1, EXISTING)], ids=str, indirect=True)
def test_export_spares_other_directories(measured: dict[str, str]) -> None:
    assert measured["message"] == "taken: exists and is no Hugging Face model; give a directory that does not exist"
    assert measured["content"] == "mine"


def test_weights_are_on_the_disk_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could leave a warm/ or hf/ of empty files, which the next launch takes for whole."""
    seen: list[str] = []
    monkeypatch.setattr(convert, "sync", lambda path: seen.append(f"{path.name} on the disk"))
    monkeypatch.setattr(convert.os, "rename", lambda source, target: seen.append(f"now {target.name}"))
    (tmp_path / ".hf.partial").mkdir()
    (tmp_path / ".hf.partial" / "model.safetensors").write_bytes(b"weights")
    convert._replace(tmp_path / "hf", tmp_path / ".hf.partial")
    assert seen == ["model.safetensors on the disk", ".hf.partial on the disk", "now hf",
                    f"{tmp_path.name} on the disk"]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias = true is not supported for llama"),
        ("llama", {"mlp_bias": True}, "mlp_bias = true is not supported for llama"),
        ("qwen3", {"attention_bias": True}, "attention_bias = true is not supported for qwen3"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; silu is"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "layer_types": None},
            "use_sliding_window = true is not supported",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
            "rope_scaling.rope_type = 'dynamic' is not supported; default, linear and llama3 are",
        ),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                 "original_max_position_embeddings": 64}},
            "rope_scaling.rope_type = 'yarn' scales attention by 1.139",
        ),
        ("llama", {"model_type": "mixtral"}, "model_type = 'mixtral' is not supported; llama, qwen2 and qwen3 are"),
    ],
)  # fmt: skip
def test_unsupported_configs_name_the_key(kind: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    MODELS[kind]().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError) as error:
        read_hf_config(tmp_path)
    assert str(error.value).startswith(f"{file}: {message}")


def test_tensor_size_must_divide_the_padded_vocabulary() -> None:
    hf = MODELS["llama"]()
    hf.num_attention_heads = hf.num_key_value_heads = 3 * SHAPE["num_attention_heads"]
    with pytest.raises(UserError, match="parallel.tensor = 3: does not divide the vocabulary padded to 256"):
        transformer_config(hf, Parallel(tensor=3), torch.float32)
