"""Checkpoints of weights, optimizer and controller by Megatron's distributed checkpointing, written in the background.

A checkpoint is a directory step-XXXXXXXX. It is written under a hidden name, renamed when every rank's files are on the
disk, and only then named by the file `latest`. A save that is interrupted, at whatever moment, leaves `latest` and what
it names as they were; its remains are removed at the next start. A checkpoint whose files are no longer what was
written is renamed to damaged-step-XXXXXXXX, and the one before it is loaded. Any topology loads what any other saved;
on the same one training continues bit for bit on the CPU, and on CUDA as far as its kernels are deterministic (see
attention.py).
No generator state is kept: nothing random happens in the trainer, and sampling is a function of the seed and the step.

Host memory: until a save is written, and during a load, every data-parallel rank holds the whole optimizer state of
its tensor and pipeline shard, three float32 numbers a weight: 12 bytes x weights / (tensor x pipeline).
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import pickle
import queue
import re
import shutil
import signal
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException

from srpo import checksums
from srpo.comm import all_gather, broadcast, broken
from srpo.config import Config, Parallel
from srpo.errors import Fault, UserError
from srpo.files import sync, writing
from srpo.megatron.convert import Shards
from srpo.megatron.model import Policy, read_hf_config, shape, transformer_config
from srpo.megatron.step import Trainer, init_distributed

logger = logging.getLogger(__name__)

LATEST = "latest"
CONTROLLER = "controller.json"
SHARD = ".distcp"
OPTIMIZER = "optimizer"
"""Begins the name of everything that is the optimizer's."""


class Checkpointer:
    """The checkpoints of one run. Every rank makes the same calls in the same order."""

    def __init__(self, directory: str | Path, keep: int) -> None:
        """`keep`: complete checkpoints that stay. Removes what a killed save left behind."""
        self.directory, self.keep = Path(directory), keep
        self.damaged: list[str] = []
        """What `load` found to be wrong with newer checkpoints than the one that it loaded."""
        self._queue = AsyncCallsQueue(persistent=False)
        if dist.get_rank() == 0:
            with writing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                for remains in self.directory.glob(".*"):
                    shutil.rmtree(remains) if remains.is_dir() else remains.unlink()
        dist.barrier()

    def save(self, step: int, trainer: Trainer, controller_state: dict[str, Any], blocking: bool = False) -> None:
        """Save the state after `step`; returns once it is copied, writing goes on in the background (see `poll`).

        `controller_state` is JSON-able; rank 0's is kept. A step that is already saved is not saved again. Raises
        UserError when the disk has too little room or cannot be written, or when an earlier save failed.
        """
        self.poll(blocking=True)
        name = f"step-{step:08d}"
        if (path := self._latest()) and path.name == name:
            return
        self._check_space(trainer)
        staging = self._staging(name)
        trainer.wait_parameters()
        # Megatron's own queue costs a spawned manager process that re-imports the main module and outlives a kill.
        filesystem_async._results_queue = _Results()
        # Weights in files of their own, so that an export reads, and checks, no more than them.
        strategy = TorchDistSaveShardedStrategy("torch_dist", 1, separation_hint=OPTIMIZER)
        if mpu.get_data_parallel_world_size() > 1:  # replicas share the writing
            strategy = FullyParallelSaveStrategyWrapper(strategy, mpu.get_data_parallel_group())
        state = _state(trainer)
        try:
            request = dist_checkpointing.save(state, str(staging), strategy, async_sharded_save=True)
        except (OSError, RuntimeError, CheckpointException) as e:  # torch.save: RuntimeError when the disk is full
            if broken(e):
                raise
            raise Fault(f"{staging}: cannot be written; is the disk full? {_reason(e)}") from e
        if dist.get_rank() == 0:
            with writing(staging / CONTROLLER):
                (staging / CONTROLLER).write_text(json.dumps(
                    {"step": step, "model": shape(trainer.hf), "controller": controller_state}))
        request.add_finalize_fn(partial(self._commit, staging, name))
        self._queue.schedule_async_request(_in_one_process(request))
        if blocking:
            self.poll(blocking=True)

    def poll(self, blocking: bool = False) -> None:
        """Complete a save whose writing has ended on all ranks; with `blocking`, wait for that.

        Raises Fault when writing failed; if the disk is full, a next try is told before it writes.
        """
        try:
            self._queue.maybe_finalize_async_calls()
            # Megatron's own blocking waits in a collective for the slowest writer, which its timeout would end.
            while blocking and self._queue.get_num_unfinalized_calls():
                time.sleep(0.1)
                self._queue.maybe_finalize_async_calls()
        except (OSError, CheckpointException) as e:
            raise Fault(f"{self.directory}: writing the checkpoint failed: {_reason(e)}") from e

    def load(self, trainer: Trainer) -> tuple[int, dict[str, Any]] | None:
        """Restore the newest intact checkpoint into `trainer`, in place: (step, controller state), or None without one.

        Raises UserError naming the directory when there is none but a damaged one, when it cannot be read, or when it
        is another model's.
        """
        self.damaged = []
        while path := self._latest():
            rank, ranks = dist.get_rank(), dist.get_world_size()
            damage = [line for lines in all_gather(checksums.verify(path, rank, ranks)) for line in lines]
            if not damage:
                break
            self._put_aside(path, "; ".join(damage[:3]))
        if path is None:
            return None
        saved = _read_json(path / CONTROLLER)
        _check_model(path, saved, trainer.hf)
        state = _read(path, _state(trainer, loading=True))
        trainer.model.load_state_dict(state["model"])
        _load_optimizer(_optimizer(trainer), state["optimizer"])
        return saved["step"], saved["controller"]

    def _latest(self) -> Path | None:
        """Rank 0's answer on all ranks: from a shared disk they can read different ones."""
        path = error = None
        if dist.get_rank() == 0:
            try:
                path = latest(self.directory)
            except UserError as e:
                error = e
        path, error = broadcast((path, error))
        if error:
            raise error
        if path:
            _require_shared(path / CONTROLLER)
        return path

    def _put_aside(self, path: Path, damage: str) -> None:
        """Let `latest` name the checkpoint before `path`. Raises UserError when there is none."""
        earlier = broadcast(max((p for p in self._complete() if p.name < path.name), default=None))
        if earlier is None:
            raise UserError(f"{path}: damaged: {damage}; there is no earlier checkpoint. Restore it from a copy, or "
                            "begin anew in another run folder")
        line = f"{path} is damaged: {damage}; going back to {earlier.name}"
        self.damaged.append(line)
        if dist.get_rank() == 0:
            logger.warning("%s", line)
            with writing(path):
                self._point_to(earlier.name)
                aside = self.directory / f"damaged-{path.name}"
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                sync(self.directory)
        dist.barrier()

    def _complete(self) -> list[Path]:
        """Oldest first."""
        return sorted(p for p in self.directory.iterdir() if re.fullmatch(r"step-\d{8}", p.name))

    def _point_to(self, name: str) -> None:
        pointer = self.directory / f".{LATEST}"
        pointer.write_text(name)
        sync(pointer)
        pointer.rename(self.directory / LATEST)
        sync(self.directory)

    def _staging(self, name: str) -> Path:
        """A new hidden directory, which every rank sees."""
        path = broadcast(self.directory / f".{name}.{uuid.uuid4().hex[:8]}")
        if dist.get_rank() == 0:
            with writing(path):
                path.mkdir()
        dist.barrier()
        _require_shared(path)
        return path

    def _check_space(self, trainer: Trainer) -> None:
        """Weights in their own dtype, and three float32 numbers a weight for the optimizer."""
        weights = sum(math.prod(entry.shape) for entry in trainer.shards.entries())
        need = weights * (trainer.dtype.itemsize + 12) + 2**20
        free = broadcast(shutil.disk_usage(self.directory).free if dist.get_rank() == 0 else 0)
        if free < need:
            raise UserError(
                f"{self.directory}: a checkpoint needs {need / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free; "
                "free some space, or lower checkpoint.keep"
            )

    def _commit(self, staging: Path, name: str) -> None:
        """Runs on every rank, after every rank's files are complete."""
        if dist.get_rank() == 0:
            with writing(self.directory / name):
                self._publish(staging, name)

    def _publish(self, staging: Path, name: str) -> None:
        checksums.collect(staging)
        for file in staging.iterdir():
            sync(file)
        sync(staging)
        final = self.directory / name
        if final.exists():  # complete but not `latest`: the run was taken back to an earlier one
            shutil.rmtree(final)
        staging.rename(final)
        sync(self.directory)
        self._point_to(name)
        # First those that the run was taken back from: the ledger has forgotten their steps, nothing can load them.
        complete = sorted((p for p in self._complete() if p.name != name), key=lambda p: p.name < name)
        for old in complete[: max(0, len(complete) - self.keep + 1)]:
            hidden = old.rename(self.directory / f".{old.name}.old")  # never half of one under a complete one's name
            shutil.rmtree(hidden)


def latest(directory: str | Path) -> Path | None:
    """The newest complete checkpoint of a run; None: there is none. Raises UserError when `latest` names nothing."""
    pointer = Path(directory) / LATEST
    if not pointer.exists():
        return None
    path = Path(directory) / pointer.read_text().strip()
    if not (path / CONTROLLER).is_file():
        raise UserError(f"{pointer}: names {path.name!r}, which is no checkpoint; name another one in it")
    return path


def export(config: Config, directory: str | Path, hf_dir: str | Path, target: str | Path) -> None:
    """Write the newest checkpoint's weights as a Hugging Face directory, in this process alone, without an optimizer.

    Only the files that hold weights are checked and read.
    `hf_dir` provides the config and the tokenizer. Raises UserError when there is no readable checkpoint.
    """
    path = latest(directory)
    if path is None:
        raise UserError(f"{directory}: holds no checkpoint yet")
    damage = checksums.verify(path, wanted=lambda name: not name.endswith(SHARD))
    if damage := damage or checksums.verify(path, wanted=_weight_files(path).__contains__):
        raise UserError(f"{path}: damaged: {damage[0]}; resume the run, which goes back to an earlier checkpoint, or "
                        f"name another one in {path.parent / LATEST}")
    init_distributed(1, 1)
    model_parallel_cuda_manual_seed(config.seed)  # building a layer draws weights, which the checkpoint then replaces
    hf = read_hf_config(hf_dir)
    _check_model(path, _read_json(path / CONTROLLER), hf)
    model = Policy(transformer_config(hf, Parallel(), getattr(torch, config.model.dtype)), hf)
    model.load_state_dict(_read(path, {"model": model.sharded_state_dict()})["model"])
    Shards(model, hf).export(hf_dir, target)


# -- state ----------------------------------------------------------------------------------------------------------


def _state(trainer: Trainer, loading: bool = False) -> dict[str, Any]:
    trainer.reload()
    metadata = dict(
        distrib_optim_sharding_type="fully_reshardable",
        dp_cp_group=mpu.get_data_parallel_group(with_context_parallel=True),
    )
    if not HAVE_APEX_OR_TE:
        _allocate_optimizer_state(_optimizer(trainer))
    model = trainer.model.sharded_state_dict(metadata=metadata)
    optimizer = _optimizer(trainer).sharded_state_dict(model, is_loading=loading, metadata=metadata)
    return {"model": model, "optimizer": optimizer}


def _optimizer(trainer: Trainer) -> DistributedOptimizer:
    (optimizer,) = trainer.optimizer.chained_optimizers
    return optimizer


def _allocate_optimizer_state(optimizer: DistributedOptimizer) -> None:
    """Saving and loading go by existing tensors; torch's AdamW makes them only in its first step."""
    for group in optimizer.optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.optimizer.state[p]:
                optimizer.optimizer.state[p] = dict(
                    step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                )


@torch.no_grad()
def _load_optimizer(optimizer: DistributedOptimizer, state: dict[str, Any]) -> None:
    """DistributedOptimizer.load_state_dict, around two faults that it has with torch's AdamW.

    It gives all parameters one `step` tensor, which each of them then advances; and it asks the checkpoint for a `step`
    a parameter, where it stores one.
    """
    tensors = state.pop("param_state")
    optimizer.load_state_dict(state)
    steps = {p: s.pop("step") for p, s in optimizer.optimizer.state.items() if "step" in s}
    optimizer.load_parameter_state_from_fully_reshardable(tensors)
    for p, step in steps.items():
        optimizer.optimizer.state[p]["step"] = step.clone()


def _read(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    try:
        return dist_checkpointing.load(state, str(path))
    except (Exception, CheckpointException) as e:  # whatever unpickling and parsing can raise
        if broken(e):
            raise
        raise UserError(f"{path}: the checkpoint cannot be read: {_reason(e)}") from e


def _weight_files(path: Path) -> set[str]:
    """Older checkpoints have optimizer state in them too."""
    stored = FileSystemReader(path).read_metadata().storage_data
    return {place.relative_path for index, place in stored.items() if not index.fqn.startswith(OPTIMIZER)}


def _reason(error: BaseException) -> str:
    """One line; of an exception that gathers those of all ranks, a first one that is known here."""
    if isinstance(error, CheckpointException):
        if not error.failures:
            return "another rank has the reason"
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None


def _check_model(path: Path, saved: dict[str, Any], hf: Any) -> None:
    """Raise UserError where a checkpoint is another model's: of a shorter vocabulary, Megatron would load what fits."""
    here = shape(hf)
    there = here | saved.get("model", {})  # older checkpoints do not say
    differ = ", ".join(f"{name} = {there[name]!r} ({here[name]!r})" for name in here if there[name] != here[name])
    if differ:
        raise UserError(f"{path}: was saved from another model than model.path (in brackets): {differ}; set model.path "
                        "back, or choose another run folder")


def _require_shared(path: Path) -> None:
    """Raises UserError on a rank that does not see what rank 0 does."""
    if not path.exists():
        raise UserError(
            f"{path}: rank {dist.get_rank()} does not see what rank 0 does; "
            "`run` must be a folder that all machines share"
        )


# -- writing --------------------------------------------------------------------------------------------------------


class _Results:
    """What the forked writer reports, in memory that it shares with its parent: Megatron's queue of results."""

    def __init__(self) -> None:
        self.file = open(os.memfd_create("checkpoint-results"), "r+b")  # noqa: SIM115 (lives as long as the save)

    def put(self, value: Any) -> None:
        pickle.dump(value, self.file)
        self.file.flush()

    def get_nowait(self) -> Any:
        self.file.seek(0)
        try:
            return pickle.load(self.file)
        except EOFError:
            return RuntimeError("the writing process died; was it killed, or out of memory?")


def _in_one_process(request: AsyncRequest) -> AsyncRequest:
    """The same writing, in the forked process itself: Megatron forks again there, and waits forever when one dies."""
    if request.async_fn is None:  # this rank has nothing to write
        return request
    transforms = request.async_fn.args[0]
    return request._replace(async_fn=partial(_write, transforms, os.getpid()))


def _write(transforms: list[Any], parent: int, rank: int, buckets: list[Any], results: _Results) -> None:
    """Body of the forked writer of one rank; dies with its parent, whose next run would otherwise meet it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.set_wakeup_fd(-1)  # the parent's watchdog reads from it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's goes to the whole process group
    if os.getppid() != parent:
        return
    written: dict[int, Any] = {}
    for i, bucket in enumerate(buckets):
        done: queue.Queue[Any] = queue.Queue()
        pending: queue.Queue[int] = queue.Queue()
        pending.put(i)
        FileSystemWriterAsync.write_preloaded_data(transforms, i, bucket, done, pending, use_fsync=True)
        _, written[i] = done.get()
        if isinstance(written[i], Exception):
            results.put(written[i])
            return
        checksums.note(Path(bucket[0]))
    results.put(written)
