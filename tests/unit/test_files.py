"""Files are whole and on the disk, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from srpo import files, samples
from srpo.errors import UserError
from srpo.files import replacing, write_text


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reaches the disk and what is renamed, in order."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        seen.append(("replace", target.name))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", replaced)
    return seen


def test_content_is_on_the_disk_before_the_name_and_the_name_before_it_returns(tmp_path, happened):
    write_text(tmp_path / "a.json", "{}")
    assert happened == [("sync", "a.json.part"), ("replace", "a.json"), ("sync", tmp_path.name)]
    assert (tmp_path / "a.json").read_text() == "{}"


def test_stored_responses_are_on_the_disk_and_so_is_their_folder(tmp_path, happened):
    name = "step-00000001.parquet"
    samples.write(tmp_path, 1, [])
    assert happened == [("sync", tmp_path.name), ("sync", f"{name}.part"), ("replace", name), ("sync", "samples")]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.csv"
    write_text(path, "old")
    with pytest.raises(UserError, match=r"a\.csv: cannot be written: full"), replacing(path) as part:
        part.write_text("half")
        raise OSError("full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_files_of_one_stem_do_not_meet(tmp_path):
    with replacing(tmp_path / "t.csv") as one, replacing(tmp_path / "t.parquet") as two:
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "t.csv").read_text() == "1" and (tmp_path / "t.parquet").read_text() == "2"
