"""Checkpoints: bit-exact, loadable into any layout, not torn by training, safe against kills, full disks, damage."""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from models import build, full_tensors, make_samples, saved_model, ungroup
from safetensors.torch import load_file

from srpo.batch import normalizer, pack
from srpo.comm import START, set_timeout
from srpo.errors import UserError
from srpo.megatron import checkpoint
from srpo.megatron.checkpoint import Checkpointer
from srpo.megatron.step import Trainer

KIND = "qwen3-tied"
LAYOUTS = {"tp2": (2, 1), "pp2": (1, 2), "dp2": (1, 1)}
# Fast: bfloat16, whose masters are apart, in each layout and float32 in one; each layout once on either side.
CONTINUED = [pytest.param(Case(2, f"continue-{layout}-{dtype}"),
                          marks=() if dtype == "bfloat16" or layout == "dp2" else pytest.mark.slow)
             for layout in LAYOUTS for dtype in ("float32", "bfloat16")]
RESHARDED = [pytest.param(Case(2, f"reshard-{a}-{b}"),
                          marks=() if f"{a}-{b}" in ("tp2-pp2", "pp2-dp2", "dp2-tp2") else pytest.mark.slow)
             for a in LAYOUTS for b in LAYOUTS if a != b]
WRITING = {
    "full": "[Errno 28] No space left on device",
    "killed": "the writing process died; was it killed, or out of memory?",
}
DAMAGE = {
    "truncated": r"truncated/step-00000001: damaged: (optimizer)?__\d_\d\.distcp has 100 bytes, not the \d+ that "
                 r"were written; .*; there is no earlier checkpoint\. Restore it from a copy, or begin anew in "
                 r"another run folder",
    "no-metadata": r"no-metadata/step-00000001: damaged: \.metadata cannot be read: No such file or directory; .*",
    "no-checksums": r"no-checksums/step-00000001: damaged: checksums\.json cannot be read: .*",
    "no-directory": r"no-directory/latest: names 'step-00000001', which is no checkpoint; .*",
}


def start(layout: str, dtype: str = "float32", load: bool = True) -> Trainer:
    path = saved_model(KIND)
    trainer = build(path, *LAYOUTS[layout], model=dict(path=str(path), dtype=dtype))
    if load:
        trainer.load_hf(path)
    return trainer


def train(trainer: Trainer) -> None:
    samples, advantages = make_samples(6)
    batches = pack(
        samples, advantages, range(6), sequences=2, rank=mpu.get_data_parallel_rank(),
        ranks=mpu.get_data_parallel_world_size(),
    )  # fmt: skip
    trainer.forward_backward(batches, normalizer(samples, range(6), "token", 1))
    trainer.optimizer_step(1e-3)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return full_tensors(trainer.shards)


def everything(trainer: Trainer) -> list[torch.Tensor]:
    """Parameters, float32 masters, both moments and the step count of this rank."""
    optimizer = checkpoint._optimizer(trainer).optimizer
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    state = [optimizer.state[p][key] for p in masters for key in ("exp_avg", "exp_avg_sq", "step")]
    return [t.detach().clone() for t in (*trainer.model.parameters(), *masters, *state)]


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[n] - b[n]).abs().max()) for n in a)


def measure(name: str) -> dict[str, Any]:
    case, *arguments = name.split("-")
    return {"continue": continued, "reshard": resharded}[case](*arguments) if arguments[1:] else OTHER[name](name)


def continued(layout: str, dtype: str) -> dict[str, Any]:
    trainer = start(layout, dtype)
    train(trainer)
    train(trainer)
    checkpoints = Checkpointer(f"continue-{layout}-{dtype}", keep=1)
    saved = everything(trainer)
    checkpoints.save(2, trainer, {"ledger": [1, "x"]})
    train(trainer)  # while it is written
    checkpoints.poll(blocking=True)
    after = everything(trainer)
    trainer = start(layout, dtype, load=False)
    addresses = [p.data_ptr() for p in trainer.model.parameters()]
    state = Checkpointer(checkpoints.directory, keep=1).load(trainer)
    loaded = everything(trainer)
    train(trainer)
    return {
        "state": float(state != (2, {"ledger": [1, "x"]})),
        "loaded": float(sum(not torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))),
        "continued": float(sum(not torch.equal(a, b) for a, b in zip(after, everything(trainer), strict=True))),
        "moved": float(addresses != [p.data_ptr() for p in trainer.model.parameters()]),
    }


def resharded(source: str, target: str) -> dict[str, Any]:
    directory = f"reshard-{source}"
    trainer = start(source)
    train(trainer)
    before = weights(trainer)
    checkpoints = Checkpointer(directory, keep=1)
    checkpoints.save(1, trainer, {}, blocking=True)
    train(trainer)
    after = weights(trainer)
    trainer = start(target, load=False)
    Checkpointer(directory, keep=1).load(trainer)
    loaded = weights(trainer)
    train(trainer)
    return {"loaded": difference(before, loaded), "continued": difference(after, weights(trainer))}


def untorn(_: str) -> dict[str, Any]:
    """The parameters are overwritten as soon as `save` returns, before the writer has begun to write."""
    trainer = start("dp2")
    train(trainer)
    before = weights(trainer)
    checkpoints = Checkpointer("untorn", keep=1)
    real = FileSystemWriterAsync.write_preloaded_data

    def late(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.5)
        real(*args, **kwargs)

    with mock.patch.object(FileSystemWriterAsync, "write_preloaded_data", late):
        checkpoints.save(1, trainer, {})
        with torch.no_grad():
            for p in (*trainer.model.parameters(), *checkpoint._optimizer(trainer).optimizer.param_groups[0]["params"]):
                p.fill_(7.0)
        unfinished = float((checkpoints.directory / "latest").exists())
        checkpoints.poll(blocking=True)
    checkpoints.load(trainer)
    return {"loaded": difference(before, weights(trainer)), "early": unfinished}


def kept(_: str) -> dict[str, Any]:
    trainer = start("tp2")
    train(trainer)
    checkpoints = Checkpointer("kept", keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, trainer, {})
    checkpoints.poll(blocking=True)
    files = sorted(p.name for p in checkpoints.directory.iterdir())
    dist.barrier()
    if dist.get_rank() == 0:
        (checkpoints.directory / "latest").write_text("step-00000010")
    dist.barrier()
    checkpoints.save(12, trainer, {}, blocking=True)
    return {"files": files, "afterwards": sorted(p.name for p in checkpoints.directory.iterdir())}


def again(_: str) -> dict[str, Any]:
    """A step that is saved already stays as it is; one that `latest` was taken back from is written anew."""
    trainer = start("tp2")
    train(trainer)
    checkpoints = Checkpointer("again", keep=2)
    for step, note in ((1, "a"), (1, "ignored"), (2, "b")):
        checkpoints.save(step, trainer, {"note": note}, blocking=True)
    if dist.get_rank() == 0:
        (checkpoints.directory / "latest").write_text("step-00000001")
    dist.barrier()
    first = checkpoints.load(trainer)
    checkpoints.save(2, trainer, {"note": "c"}, blocking=True)
    return {"loaded": [first, checkpoints.load(trainer)]}


def failing(name: str) -> dict[str, Any]:
    trainer = start("tp2")
    train(trainer)
    checkpoints = Checkpointer(name, keep=1)
    checkpoints.save(1, trainer, {}, blocking=True)

    def fail(transforms: Any, i: int, bucket: Any, done: Any, *_: Any, **__: Any) -> None:
        if mpu.get_tensor_model_parallel_rank() == 0:  # in the writer of one rank only
            if name == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            done.put((i, OSError(28, os.strerror(28))))
        done.put((i, []))

    with mock.patch.object(FileSystemWriterAsync, "write_preloaded_data", fail):
        checkpoints.save(2, trainer, {})
        with pytest.raises(UserError) as error:
            checkpoints.poll(blocking=True)
    step, _ = checkpoints.load(trainer) or (0, {})
    return {"message": str(error.value) if dist.get_rank() == 0 else "", "step": float(step)}


def unfair(_: str) -> dict[str, Any]:
    """The disk serves one rank long after the other, for longer than a collective may take."""
    trainer = start("tp2")
    checkpoints = Checkpointer("unfair", keep=1)
    real = FileSystemWriterAsync.write_preloaded_data

    def late(*args: Any, **kwargs: Any) -> None:
        time.sleep(8.0 * dist.get_rank())
        real(*args, **kwargs)

    with mock.patch.object(FileSystemWriterAsync, "write_preloaded_data", late):
        checkpoints.save(1, trainer, {})
        set_timeout(timedelta(seconds=5))
        try:
            checkpoints.poll(blocking=True)
        finally:
            set_timeout(START)
    return {"saved": (checkpoints.directory / "latest").read_text()}


@functools.cache
def whole() -> Path:
    trainer = start("tp2")
    train(trainer)
    checkpoints = Checkpointer("whole", keep=1)
    checkpoints.save(1, trainer, {}, blocking=True)
    return checkpoints.directory


def damaged(name: str) -> dict[str, Any]:
    source, path = whole(), Path(name, "step-00000001")
    trainer = start("tp2", load=False)
    if dist.get_rank() == 0:
        shutil.copytree(source, name)
        if name == "truncated":
            for file in path.glob("*.distcp"):
                os.truncate(file, 100)
        elif name == "no-metadata":
            (path / ".metadata").unlink()
        elif name == "no-checksums":
            (path / "checksums.json").unlink()
        else:
            shutil.rmtree(path)
    dist.barrier()
    with pytest.raises(UserError) as error:
        Checkpointer(name, keep=1).load(trainer)
    return {"message": str(error.value)}


def foreign(_: str) -> dict[str, Any]:
    """Of what is a longer vocabulary than the checkpoint's, Megatron itself would load the rows that are there."""
    source = whole()
    config = json.loads((saved_model(KIND) / "config.json").read_text())
    if dist.get_rank() == 0:
        Path("longer").mkdir()
        Path("longer/config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 3}))
    dist.barrier()
    trainer = build(Path("longer"), *LAYOUTS["tp2"])
    with pytest.raises(UserError) as loading:
        Checkpointer(source, keep=1).load(trainer)
    ungroup()
    with pytest.raises(UserError) as exporting:
        checkpoint.export(trainer.config, source, "longer", "exported-longer")
    return {"messages": [str(loading.value), str(exporting.value)], "vocab": config["vocab_size"]}


def flipped(_: str) -> dict[str, Any]:
    """One bit of each rank's largest file of the newest checkpoint, and one of a small file of the one before it."""
    trainer = start("tp2")
    checkpoints = Checkpointer("flipped", keep=3)
    found = {}
    for step in (1, 2, 3):
        train(trainer)
        checkpoints.save(step, trainer, {"n": step}, blocking=True)
        found[step] = everything(trainer)
    if dist.get_rank() == 0:
        flip(checkpoints.directory / "step-00000003" / "__1_0.distcp")
        flip(checkpoints.directory / "step-00000002" / "common.pt")
    dist.barrier()
    trainer = start("tp2", load=False)
    again = Checkpointer("flipped", keep=3)
    state = again.load(trainer)
    loaded = everything(trainer)
    files = sorted(p.name for p in again.directory.iterdir())
    train(trainer)
    again.save(2, trainer, {"n": 2}, blocking=True)
    return {"state": state, "damaged": again.damaged, "files": files,
            "loaded": sum(not torch.equal(a, b) for a, b in zip(found[1], loaded, strict=True)),
            "redone": sum(not torch.equal(a, b) for a, b in zip(found[2], everything(trainer), strict=True)),
            "afterwards": sorted(p.name for p in again.directory.iterdir())}


def flip(file: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def small_disk(_: str) -> dict[str, Any]:
    trainer = start("tp2")
    train(trainer)
    checkpoints = Checkpointer("small-disk", keep=1)
    usage = namedtuple("usage", "total used free")(0, 0, 2**19)
    with mock.patch.object(shutil, "disk_usage", lambda _: usage), pytest.raises(UserError) as error:
        checkpoints.save(1, trainer, {})
    return {"message": str(error.value), "files": [p.name for p in checkpoints.directory.iterdir()]}


def unwritable(_: str) -> dict[str, Any]:
    """The kernel refuses to write beyond so many bytes a file."""
    trainer = start("dp2")
    train(trainer)
    checkpoints = Checkpointer("unwritable", keep=1)
    checkpoints.save(1, trainer, {}, blocking=True)
    Path("taken").write_text("")
    attempts: dict[str, tuple[int, Callable[[], object]]] = {
        "common": (100, lambda: checkpoints.save(2, trainer, {})),
        "controller": (10**5, lambda: checkpoints.save(2, trainer, {"long": "x" * 10**6})),
        "shard": (10**5, lambda: checkpoints.save(2, trainer, {}, blocking=True)),
        "companions": (100, lambda: trainer.export_hf("hf")),
        "weights": (10**5, lambda: trainer.export_hf("hf")),
        "folder": (100, lambda: Checkpointer("taken/checkpoints", keep=1)),
    }
    messages = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, (limit, attempt) in attempts.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(UserError) as error:
                attempt()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        messages[name] = str(error.value)
    step, _state = checkpoints.load(trainer) or (0, {})
    return messages | {"step": float(step)}


def not_shared(_: str) -> dict[str, Any]:
    """Rank 1 sees a folder of its own under the same name."""
    if dist.get_rank() == 1:
        Path("elsewhere").mkdir()
        os.chdir("elsewhere")
    checkpoints = Checkpointer("not-shared", keep=1)
    if dist.get_rank() == 0:
        checkpoints._staging("step-00000001")
        (checkpoints.directory / "step-00000001").mkdir()
        (checkpoints.directory / "step-00000001" / "controller.json").write_text("{}")
        (checkpoints.directory / "latest").write_text("step-00000001")
        checkpoints._latest()
        return {}
    with pytest.raises(UserError) as saving:
        checkpoints._staging("step-00000001")
    with pytest.raises(UserError) as loading:
        checkpoints._latest()
    return {"saving": str(saving.value), "loading": str(loading.value)}


def exported(_: str) -> dict[str, Any]:
    trainer = start("tp2")
    train(trainer)
    before = weights(trainer)
    Checkpointer("export", keep=1).save(1, trainer, {}, blocking=True)
    ungroup()
    if dist.get_rank() == 0:
        for file in Path("export/step-00000001").glob("optimizer*.distcp"):  # which is nothing to an export
            file.write_bytes(b"")
    dist.barrier()
    checkpoint.export(trainer.config, "export", trainer.hf_dir, "exported")
    ungroup()
    with pytest.raises(UserError) as error:
        checkpoint.export(trainer.config, "nothing", trainer.hf_dir, "exported")
    if dist.get_rank() == 0:
        flip(Path("export/step-00000001/__1_0.distcp"))
    dist.barrier()
    with pytest.raises(UserError) as damage:
        checkpoint.export(trainer.config, "export", trainer.hf_dir, "exported")
    return {"exported": difference(before, load_file("exported/model.safetensors")), "message": str(error.value),
            "damage": str(damage.value)}


OTHER = {
    "unfair": unfair, "untorn": untorn, "kept": kept, "again": again, "small-disk": small_disk, "export": exported,
    "unwritable": unwritable, "not-shared": not_shared, "flipped": flipped,
    "foreign": foreign,
    **dict.fromkeys(WRITING, failing), **dict.fromkeys(DAMAGE, damaged),
}  # fmt: skip


def on_two_ranks(*names: str) -> Any:
    return pytest.mark.parametrize("measured", [Case(2, name) for name in names], ids=names, indirect=True)


@pytest.mark.parametrize("measured", CONTINUED, ids=str, indirect=True)
def test_the_same_layout_continues_bit_for_bit(measured: dict[str, float]) -> None:
    assert measured == {"state": 0, "loaded": 0, "continued": 0, "moved": 0}


@pytest.mark.parametrize("measured", RESHARDED, ids=str, indirect=True)
def test_another_layout_continues(measured: dict[str, float]) -> None:
    assert measured["loaded"] == 0
    assert measured["continued"] < 1e-6  # a thousandth of the learning rate


@on_two_ranks("untorn")
def test_training_on_does_not_tear_a_save(measured: dict[str, float]) -> None:
    assert measured == {"loaded": 0, "early": 0}


@on_two_ranks("unfair")
def test_waiting_for_a_slow_writer_is_no_hang(measured: dict[str, Any]) -> None:
    assert measured["saved"] == "step-00000001"


@on_two_ranks("kept")
def test_old_checkpoints_leave(measured: dict[str, Any]) -> None:
    assert measured["files"] == ["latest", "step-00000010", "step-00000015"]
    assert measured["afterwards"] == ["latest", "step-00000010", "step-00000012"], "taken back to 10"


@on_two_ranks("again")
def test_a_step_is_saved_once(measured: dict[str, Any]) -> None:
    assert measured["loaded"] == [[1, {"note": "a"}], [2, {"note": "c"}]]


@pytest.mark.parametrize(
    ("measured", "message"), [(Case(2, n), m) for n, m in WRITING.items()], ids=WRITING, indirect=["measured"]
)
def test_a_failed_write_stops_the_run_and_keeps_the_last(measured: dict[str, Any], message: str) -> None:
    assert measured["message"].endswith(f": writing the checkpoint failed: RuntimeError: Worker failure: {message}")
    assert measured["step"] == 1


@pytest.mark.parametrize(
    ("measured", "message"), [(Case(2, n), m) for n, m in DAMAGE.items()], ids=DAMAGE, indirect=["measured"]
)
def test_damage_names_the_directory(measured: dict[str, str], message: str) -> None:
    assert re.fullmatch(message, measured["message"])


@on_two_ranks("flipped")
def test_a_flipped_bit_is_found_and_an_earlier_checkpoint_taken(measured: dict[str, Any]) -> None:
    assert measured["damaged"] == [
        "flipped/step-00000003 is damaged: __1_0.distcp has another checksum than what was written; going back to "
        "step-00000002",
        "flipped/step-00000002 is damaged: common.pt has another checksum than what was written; going back to "
        "step-00000001"]
    assert measured["state"] == [1, {"n": 1}] and measured["loaded"] == measured["redone"] == 0
    assert measured["files"] == ["damaged-step-00000002", "damaged-step-00000003", "latest", "step-00000001"]
    assert measured["afterwards"] == [*measured["files"], "step-00000002"]


@on_two_ranks("foreign")
def test_another_model_s_checkpoint_is_refused(measured: dict[str, Any]) -> None:
    vocab = measured["vocab"]
    assert measured["messages"] == 2 * [
        "whole/step-00000001: was saved from another model than model.path (in brackets): "
        f"vocab_size = {vocab} ({vocab + 3}); set model.path back, or choose another run folder"]


@on_two_ranks("small-disk")
def test_a_full_disk_is_seen_before_writing(measured: dict[str, Any]) -> None:
    assert measured["message"].startswith("small-disk: a checkpoint needs 0.00 GiB and 0.00 GiB are free; free some")
    assert measured["files"] == []


@pytest.mark.parametrize("measured", [Case(1, "unwritable")], ids=str, indirect=True)
def test_what_cannot_be_written_is_named(measured: dict[str, Any]) -> None:
    staging = r"unwritable/\.step-00000002\.[0-9a-f]{8}"
    expected = {
        "common": staging + r": cannot be written; is the disk full\? RuntimeError: .*",
        "controller": staging + "/controller.json: cannot be written: File too large",
        "shard": "unwritable: writing the checkpoint failed: .*File too large.*",
        "companions": r"\.hf\.partial: cannot be written: File too large",
        "weights": r"\.hf\.partial/model\.safetensors: cannot be written: .*File too large.*",
        "folder": "taken/checkpoints: cannot be written: Not a directory",
    }
    assert measured["step"] == 1
    assert {n: measured[n] for n, pattern in expected.items() if not re.fullmatch(pattern, measured[n])} == {}


@on_two_ranks("not-shared")
def test_every_rank_must_see_the_folder(measured: dict[str, str]) -> None:
    hint = "rank 1 does not see what rank 0 does; `run` must be a folder that all machines share"
    assert re.fullmatch(rf"not-shared/\.step-00000001\.[0-9a-f]{{8}}: {hint}", measured["saving"])
    assert measured["loading"] == f"not-shared/step-00000001/controller.json: {hint}"


@on_two_ranks("export")
def test_export_reads_any_layout_without_an_optimizer(measured: dict[str, Any]) -> None:
    assert measured["exported"] == 0 and measured["message"] == "nothing: holds no checkpoint yet"
    assert measured["damage"].startswith("export/step-00000001: damaged: __1_0.distcp has another checksum than what")


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from models import regroup
from test_checkpoint import Checkpointer, FileSystemWriterAsync, start, train

torch.set_num_threads(1)
regroup()
trainer = start("dp2")
checkpoints = Checkpointer("killed", keep=2)
if len(sys.argv) > 1:
    print("loaded", checkpoints.load(trainer), sorted(os.listdir("killed")))
    sys.exit()
train(trainer)
checkpoints.save(1, trainer, {"n": 1}, blocking=True)

def never(*args, **kwargs):
    Path("writer").write_text(str(os.getpid()))
    time.sleep(600)

FileSystemWriterAsync.write_preloaded_data = never
train(trainer)
checkpoints.save(2, trainer, {"n": 2})
while not Path("writer").exists() or not Path("writer").read_text():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": harness.PYTHONPATH, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=harness.LIMIT)

    killed = run()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    files = sorted(p.name for p in (tmp_path / "killed").iterdir())
    assert files[0].startswith(".step-00000002.")
    assert files[1:] == ["latest", "step-00000001"]
    assert not Path("/proc", (tmp_path / "writer").read_text(), "exe").exists()  # run() waited for its end of the pipe
    resumed = run("resume")
    assert "loaded (1, {'n': 1}) ['latest', 'step-00000001']" in resumed.stdout, resumed.stderr
