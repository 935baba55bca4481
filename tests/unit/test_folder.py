"""What guards a run folder and its data, before anything is trained."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from srpo import config, folder, train
from srpo.control.ledger import Ledger, RolloutRow
from srpo.data.schema import Problem, check_disjoint
from srpo.errors import UserError


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch):
    """Every look at the clock is five seconds later."""
    clock = itertools.count(0, 5)
    monkeypatch.setattr(folder.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(folder.time, "sleep", lambda seconds: None)


def test_one_launch_a_run_folder(tmp_path: Path, impatient: None):
    run = tmp_path / "a" / "run"
    assert not folder.in_use(run)
    lock = folder.claim(run)
    assert folder.in_use(run)
    with pytest.raises(UserError, match="another launch is using it"):
        folder.claim(run)
    lock.close()
    assert not folder.in_use(run)
    folder.claim(tmp_path / "a" / "run").close()


@pytest.mark.parametrize(("restarts", "tries"), [("0", 2), ("1", 24)])
def test_a_restarted_launch_waits_longer_for_a_host_that_is_gone(tmp_path: Path, impatient: None, restarts: str,
                                                                 tries: int, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    monkeypatch.setattr(folder.time, "sleep", waits.append)
    with folder.claim(tmp_path), pytest.raises(UserError, match="another launch is using it"):
        folder.claim(tmp_path)
    assert len(waits) == tries


def test_a_file_is_no_run_folder(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"run = '.*/run': cannot be used as a run folder: File exists"):
        folder.claim(tmp_path / "run")


def test_a_run_without_its_checkpoints_is_not_begun_again(tmp_path: Path):
    """Killed before its first checkpoint it is; with steps, or a model, that would be deleted, it is not."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        ledger.event(0, "resample", "epoch 1: 3 of 9 prompts are left out for their measured pass rate")
        train._check_resumable(tmp_path, ledger)
        ledger.append([RolloutRow(1, 1, "s", "a", 0, "math", 0.0, 0.0, 7, False)])
        with pytest.raises(UserError, match=r"run = .*: holds 1 steps in its ledger, but no checkpoint to go"):
            train._check_resumable(tmp_path, ledger)
        (tmp_path / "hf").mkdir()
        with pytest.raises(UserError, match=r"holds 1 steps in its ledger and a finished model in hf/, but no"):
            train._check_resumable(tmp_path, ledger)
        (checkpoints / "step-00000000").mkdir()
        (checkpoints / "step-00000000" / "controller.json").touch()
        (checkpoints / "latest").write_text("step-00000000")
        train._check_resumable(tmp_path, ledger)


def test_held_out_problems_are_not_trained_on():
    one, two = Problem("1", "math", "a", answer="1"), Problem("2", "math", "b", answer="2")
    check_disjoint([one], [two])
    with pytest.raises(UserError, match="data.eval: problem '2' has the id of one in data.train"):
        check_disjoint([one, two], [two])


def test_a_changed_configuration_is_told_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "config.yaml"
    first = config.Config.model_validate({
        "run": str(tmp_path), "model": {"path": "m"}, "data": {"train": ["a.jsonl"]},
        "stages": [{"name": "s", "domains": ["math"], "until": "steps", "steps": 1}]})
    folder.record(file, first)
    folder.record(file, first)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        folder.record(file, first.model_copy(update={"seed": 7}))
    assert "changed since the run began: seed = 7 (was 1)" in caplog.text
    assert config.load(file).seed == 7


def test_a_changed_setting_is_told_by_its_whole_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """batch.samples, eval.samples; one of a stage alone; and one that is there no more."""
    file = tmp_path / "config.yaml"
    now = config.Config.model_validate({
        "run": str(tmp_path), "model": {"path": "m"}, "data": {"train": ["a.jsonl"]}, "batch": {"samples": 16},
        "stages": [{"name": "s", "domains": ["math"], "until": "steps", "steps": 1}]})
    file.write_text(config.dump(now).replace("  samples: 16", "  samples: 32\n  retired: true").replace(
        "  steps: 1", "  steps: 2"))
    folder.record(file, now)
    told = "began: batch.retired = unset (was True); batch.samples = 16 (was 32); stages.0.steps = 1 (was 2)\n"
    assert told in caplog.text


@pytest.mark.parametrize("use", [folder.claim, folder.in_use])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                use: Callable[[Path], object]):
    """As Lustre is, mounted without them."""
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    (tmp_path / ".lock").touch()
    monkeypatch.setattr(folder.fcntl, "flock", flock)
    with pytest.raises(UserError, match="its file system gives no lock, .*: Function not implemented; mount it with"):
        use(tmp_path)


@pytest.mark.parametrize(("ranks", "tensor", "cores", "workers"),
                         [(1, 1, 8, 8), (8, 1, 16, 2), (8, 8, 16, 16), (2, 1, 1, 1)])
def test_graders_share_the_machine(monkeypatch: pytest.MonkeyPatch, ranks: int, tensor: int, cores: int, workers: int):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(train.os, "sched_getaffinity", lambda pid: set(range(cores)))
    settings = config.Config.model_validate({
        "run": "r", "model": {"path": "m"}, "data": {"train": ["a"]}, "parallel": {"tensor": tensor},
        "stages": [{"name": "s", "domains": ["math"], "until": "steps", "steps": 1}]})
    assert train._workers(settings) == workers
