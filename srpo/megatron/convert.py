"""Hugging Face checkpoints <-> this rank's shards, one tensor at a time.

`layout` is the single table that pairs every Hugging Face tensor with a Megatron parameter; loading, export and the
sizes of exported files all follow it. Loading reads only this rank's slices from disk. Export gathers one full tensor
at a time (over the tensor ranks, then from the stage that owns it). Both are bit-exact in the checkpoint's own dtype.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from srpo.errors import UserError
from srpo.megatron.model import head_dim

SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")  # other formats of the old weights


@dataclass(frozen=True)
class Entry:
    """A Hugging Face tensor and where it lives: rows `start`.. of a part of a (global) Megatron parameter."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    """Megatron's name, with layers counted over all pipeline stages."""
    axis: int | None
    """Split over the tensor ranks along this axis; None: on every rank."""
    start: int = 0
    """First row, in the local parameter of one rank, of this rank's share. Below the full tensor's row / ranks."""
    stage: int = 0
    """Pipeline stage."""
    duplicate: bool = False
    """A second copy (tied output weight on the last stage): loaded, never exported."""

    def local_shape(self, ranks: int, padded_vocab: int) -> tuple[int, ...]:
        """Shape of one tensor rank's share; vocabulary rows include the padding."""
        if self.axis is None:
            return self.shape
        full = padded_vocab if self.parameter in VOCAB_PARAMETERS else self.shape[self.axis]
        return (*self.shape[: self.axis], full // ranks, *self.shape[self.axis + 1 :])


VOCAB_PARAMETERS = ("embedding.word_embeddings.weight", "output_layer.weight")


def layout(hf: Any, tensor: int, pipeline: int) -> Iterator[Entry]:
    """Every tensor of the model, in the order of the Hugging Face modules, for a tensor x pipeline layout."""
    hidden, ffn = hf.hidden_size, hf.intermediate_size
    query, kv = hf.num_attention_heads * head_dim(hf), hf.num_key_value_heads * head_dim(hf)
    embed, output = VOCAB_PARAMETERS
    last = pipeline - 1

    yield Entry("model.embed_tokens.weight", (hf.vocab_size, hidden), embed, 0)
    for layer in range(hf.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}", f"decoder.layers.{layer}"
        stage = layer * pipeline // hf.num_hidden_layers
        for kind, shape in (("weight", (hidden,)), ("bias", ())):
            if kind == "bias" and hf.model_type != "qwen2":
                continue
            start = 0
            for name, rows in (("q", query), ("k", kv), ("v", kv)):
                parameter = f"{ours}.self_attention.linear_qkv.{kind}"
                yield Entry(f"{theirs}.self_attn.{name}_proj.{kind}", (rows, *shape), parameter, 0, start, stage)
                start += rows // tensor
        if hf.model_type == "qwen3":
            for name in ("q", "k"):
                parameter = f"{ours}.self_attention.{name}_layernorm.weight"
                yield Entry(f"{theirs}.self_attn.{name}_norm.weight", (head_dim(hf),), parameter, None, 0, stage)
        parameter = f"{ours}.self_attention.linear_proj.weight"
        yield Entry(f"{theirs}.self_attn.o_proj.weight", (hidden, query), parameter, 1, 0, stage)
        for name, start in (("gate", 0), ("up", ffn // tensor)):
            parameter = f"{ours}.mlp.linear_fc1.weight"
            yield Entry(f"{theirs}.mlp.{name}_proj.weight", (ffn, hidden), parameter, 0, start, stage)
        yield Entry(f"{theirs}.mlp.down_proj.weight", (hidden, ffn), f"{ours}.mlp.linear_fc2.weight", 1, 0, stage)
        for name, parameter in (("input", "input"), ("post_attention", "pre_mlp")):
            parameter = f"{ours}.{parameter}_layernorm.weight"
            yield Entry(f"{theirs}.{name}_layernorm.weight", (hidden,), parameter, None, 0, stage)
    yield Entry("model.norm.weight", (hidden,), "decoder.final_layernorm.weight", None, 0, last)
    if not hf.tie_word_embeddings:
        yield Entry("lm_head.weight", (hf.vocab_size, hidden), output, 0, 0, last)
    elif pipeline > 1:
        yield Entry("model.embed_tokens.weight", (hf.vocab_size, hidden), output, 0, 0, last, duplicate=True)


class Shards:
    """This rank's parameters, addressed by the table's entries."""

    def __init__(self, model: torch.nn.Module, hf: Any, padded_vocab: int) -> None:
        self.hf, self.padded_vocab = hf, padded_vocab
        self.tensor, self.rank = mpu.get_tensor_model_parallel_world_size(), mpu.get_tensor_model_parallel_rank()
        self.pipeline, self.stage = mpu.get_pipeline_model_parallel_world_size(), mpu.get_pipeline_model_parallel_rank()
        first = self.stage * hf.num_hidden_layers // self.pipeline
        self.parameters = {_global_name(name, first): p for name, p in model.named_parameters()}

    def entries(self) -> Iterator[Entry]:
        return layout(self.hf, self.tensor, self.pipeline)

    def local(self, entry: Entry) -> torch.Tensor:
        """This rank's share of a tensor of its own stage: a view of the parameter's storage."""
        parameter = self.parameters[entry.parameter].data
        rows = entry.local_shape(self.tensor, self.padded_vocab)[0]
        return parameter[entry.start : entry.start + rows]

    def slices(self, entry: Entry) -> tuple[slice, ...]:
        """Where this rank's share lies in the full tensor; vocabulary padding lies beyond its end."""
        if entry.axis is None:
            return (slice(None),)
        size = entry.local_shape(self.tensor, self.padded_vocab)[entry.axis]
        end = entry.shape[entry.axis]
        share = slice(min(self.rank * size, end), min((self.rank + 1) * size, end))
        return (slice(None),) * entry.axis + (share,)

    @torch.no_grad()
    def load(self, path: str | Path) -> None:
        """Read this rank's slices from a Hugging Face directory; padded vocabulary rows become zero.

        Raises UserError naming the file and the tensor when one is missing, unreadable, or of another shape.
        """
        files = _Files(Path(path))
        for entry in self.entries():
            if entry.stage != self.stage:
                continue
            target = self.local(entry)
            source = files.read(entry, self.slices(entry))
            target[: source.shape[0]].copy_(source)
            target[source.shape[0] :].zero_()

    @torch.no_grad()
    def full(self, entry: Entry) -> torch.Tensor:
        """The full tensor, on every rank; every rank calls it for the same entries in the same order."""
        size = entry.local_shape(self.tensor, self.padded_vocab)
        some = next(iter(self.parameters.values()))
        if self.stage == entry.stage:
            full = self.local(entry)
            if entry.axis is not None and self.tensor > 1:
                parts = [torch.empty(size, dtype=some.dtype, device=some.device) for _ in range(self.tensor)]
                dist.all_gather(parts, full.contiguous(), group=mpu.get_tensor_model_parallel_group())
                full = torch.cat(parts, dim=entry.axis)
            full = full[: entry.shape[0]].contiguous()
        else:
            full = torch.empty(entry.shape, dtype=some.dtype, device=some.device)
        if self.pipeline > 1:
            group = mpu.get_pipeline_model_parallel_group()
            dist.broadcast(full, dist.get_global_rank(group, entry.stage), group=group)
        return full

    def export(self, source: str | Path, target: str | Path) -> None:
        """Write a Hugging Face directory from the current weights; every rank calls it, rank 0 writes.

        Config, tokenizer and whatever else is no weight are copied from `source`. `target` appears under its name only
        when complete, replacing an earlier export. Raises UserError when something else is there, or nothing can be
        written.
        """
        target = Path(target)
        staging = target.with_name(f".{target.name}.partial")
        writes = dist.get_rank() == 0
        if writes:
            if target.exists() and not (target / "config.json").exists() and any(target.iterdir()):
                raise UserError(f"{target}: exists and is no Hugging Face model; give a directory that does not exist")
            shutil.rmtree(staging, ignore_errors=True)
            with writing(staging):
                staging.mkdir(parents=True)
                _copy_companions(Path(source), staging, self._dtype())
        files = self._export_files()
        for file, entries in files.items():
            tensors = {}
            for entry in entries:
                full = self.full(entry)
                if writes:
                    tensors[entry.name] = full.to("cpu", copy=True)
            if writes:
                with writing(staging / file):
                    save_file(tensors, staging / file, metadata={"format": "pt"})
        if writes:
            with writing(target):
                if len(files) > 1:
                    self._write_index(staging / INDEX, files)
                _replace(target, staging)
        dist.barrier()

    def _dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    def _export_files(self) -> dict[str, list[Entry]]:
        groups: list[list[Entry]] = [[]]
        size = 0
        for entry in (e for e in self.entries() if not e.duplicate):
            nbytes = math.prod(entry.shape) * self._dtype().itemsize
            if groups[-1] and size + nbytes > SHARD_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(entry)
            size += nbytes
        if len(groups) == 1:
            return {"model.safetensors": groups[0]}
        return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}

    def _write_index(self, path: Path, files: dict[str, list[Entry]]) -> None:
        total = sum(math.prod(e.shape) for entries in files.values() for e in entries) * self._dtype().itemsize
        weight_map = {e.name: file for file, entries in files.items() for e in entries}
        path.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))


def _global_name(name: str, first_layer: int) -> str:
    if not name.startswith("decoder.layers."):
        return name
    layer, rest = name.removeprefix("decoder.layers.").split(".", 1)
    return f"decoder.layers.{int(layer) + first_layer}.{rest}"


class _Files:
    """The safetensors of a directory: one file, or several with an index."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.index = directory, directory / INDEX
        self.open_files: dict[str, Any] = {}
        self.weight_map: dict[str, str] | None = None
        if (directory / "model.safetensors").exists():
            return
        try:
            self.weight_map = json.loads(self.index.read_text())["weight_map"]
        except FileNotFoundError:
            raise UserError(f"{directory}: has neither model.safetensors nor {INDEX}") from None
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f"{self.index}: not a safetensors index (no weight_map in it)") from None

    def read(self, entry: Entry, share: tuple[slice, ...]) -> torch.Tensor:
        file = "model.safetensors" if self.weight_map is None else self.weight_map.get(entry.name)
        if file is None:
            raise UserError(f"{self.index}: lists no tensor {entry.name}")
        path = self.directory / file
        try:
            if file not in self.open_files:
                self.open_files[file] = safe_open(path, framework="pt")
            if entry.name not in self.open_files[file].keys():  # noqa: SIM118 (safe_open is no mapping)
                raise UserError(f"{path}: has no tensor {entry.name}")
            source = self.open_files[file].get_slice(entry.name)
            if tuple(source.get_shape()) != entry.shape:
                found = list(source.get_shape())
                raise UserError(f"{path}: {entry.name} has shape {found}; config.json implies {list(entry.shape)}")
            return source[share]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file, and it should hold {entry.name}") from None
        except (SafetensorError, OSError) as e:
            raise UserError(f"{path}: cannot be read as safetensors, for {entry.name}: {e}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, a missing permission and the like become a UserError that names `path`."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror or e}") from e
    except SafetensorError as e:
        raise UserError(f"{path}: cannot be written: {e}") from e


def _copy_companions(source: Path, target: Path, dtype: torch.dtype) -> None:
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(NOT_COPIED):
            shutil.copyfile(file, target / file.name)
    config = json.loads((target / "config.json").read_text())
    config.pop("torch_dtype", None)  # the name before transformers 5
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _replace(target: Path, staging: Path) -> None:
    """Put `staging` at `target`; an interruption leaves the old one, the new one or none, never a mixture."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(staging, target)
    shutil.rmtree(old, ignore_errors=True)
