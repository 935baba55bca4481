"""Hugging Face checkpoints <-> this rank's shards, one tensor at a time.

Loading, export and the sizes of exported files all follow the table in layout.py. Loading reads only this rank's slices
from disk. Export gathers one full tensor at a time (over the tensor ranks, then from the stage that owns it). Both are
bit-exact in the checkpoint's own dtype.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from srpo.errors import UserError
from srpo.files import sync, writing
from srpo.megatron.layout import Entry, layout

SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")  # other formats of the old weights


class Shards:
    """This rank's parameters, addressed by the table's entries."""

    def __init__(self, model: torch.nn.Module, hf: Any) -> None:
        self.hf = hf
        self.tensor, self.rank = mpu.get_tensor_model_parallel_world_size(), mpu.get_tensor_model_parallel_rank()
        self.pipeline, self.stage = mpu.get_pipeline_model_parallel_world_size(), mpu.get_pipeline_model_parallel_rank()
        first = self.stage * hf.num_hidden_layers // self.pipeline
        self.parameters = {_global_name(name, first): p for name, p in model.named_parameters()}

    def entries(self) -> Iterator[Entry]:
        return layout(self.hf, self.tensor, self.pipeline)

    def local(self, entry: Entry) -> torch.Tensor:
        """This rank's share of a tensor of its own stage: a view of the parameter's storage."""
        return self.parameters[entry.parameter].data.narrow(entry.axis, entry.start, entry.size)

    def slices(self, entry: Entry) -> tuple[slice, ...]:
        """Where this rank's share lies in the full tensor; vocabulary padding lies beyond its end."""
        begin, end = entry.begin(self.rank, self.tensor), entry.shape[entry.axis]
        return (slice(None),) * entry.axis + (slice(min(begin, end), min(begin + entry.size, end)),)

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
        some = next(iter(self.parameters.values()))
        if self.stage == entry.stage:
            full = self.local(entry)
            if entry.shares > 1:
                share = full.contiguous()
                parts = [torch.empty_like(share) for _ in range(entry.shares)]
                dist.all_gather(parts, share, group=mpu.get_tensor_model_parallel_group())
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
                    _save(tensors, staging / file)
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


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as e:  # what the disk refuses, too
        raise OSError(str(e)) from e


def _copy_companions(source: Path, target: Path, dtype: torch.dtype) -> None:
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(NOT_COPIED):
            shutil.copyfile(file, target / file.name)
    config = json.loads((target / "config.json").read_text())
    config.pop("torch_dtype", None)  # the name before transformers 5
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _replace(target: Path, staging: Path) -> None:
    """Put `staging` at `target`; an interruption, a power cut too, leaves the old one, the new one or none, never a
    mixture: a run takes what stands there for whole."""
    for path in (*staging.iterdir(), staging):
        sync(path)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(staging, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
