"""Whatever happens to a file of a directory is found, and by whom it is looked at does not matter."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from srpo import checksums


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, size in (("a", 3 * 2**20 + 5), ("b", 100), (".hidden", 0)):
        (tmp_path / name).write_bytes(os.urandom(size))
    checksums.note(tmp_path / "a")
    checksums.collect(tmp_path)
    return tmp_path


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def test_what_was_written_is_intact_and_notes_are_gone(directory: Path) -> None:
    assert checksums.verify(directory) == []
    assert {f.name for f in directory.iterdir()} == {"a", "b", ".hidden", "checksums.json"}


@pytest.mark.parametrize(("name", "damage", "found"), [
    ("a", lambda f: flip(f, 0), "a has another checksum than what was written"),
    ("a", lambda f: flip(f, 8 * (3 * 2**20 + 5) - 1), "a has another checksum than what was written"),
    ("b", lambda f: flip(f, 400), "b has another checksum than what was written"),
    ("b", lambda f: os.truncate(f, 99), "b has 99 bytes, not the 100 that were written"),
    (".hidden", Path.unlink, ".hidden cannot be read: No such file or directory"),
])
def test_damage_is_found_by_one_share(directory: Path, name: str, damage: Callable, found: str) -> None:
    damage(directory / name)
    assert checksums.verify(directory) == [found]
    shares = [checksums.verify(directory, share, 4) for share in range(4)]
    assert sorted(shares) == [[], [], [], [found]]


@pytest.mark.parametrize("content", [None, "", "[1]", '{"a": 3}'])
def test_a_manifest_that_is_none(directory: Path, content: str | None) -> None:
    manifest = directory / "checksums.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    (why,) = checksums.verify(directory)
    assert why.startswith("checksums.json cannot be read: ")


def test_what_is_noted_is_what_the_writer_saw(tmp_path: Path) -> None:
    """Damage between the writing and the manifest is found too."""
    (tmp_path / "a").write_bytes(b"0123")
    checksums.note(tmp_path / "a")
    flip(tmp_path / "a", 5)
    checksums.collect(tmp_path)
    assert checksums.verify(tmp_path) == ["a has another checksum than what was written"]


def test_only_what_is_wanted_is_looked_at(directory: Path) -> None:
    flip(directory / "a", 0)
    flip(directory / "b", 0)
    assert checksums.verify(directory, wanted="b".__eq__) == ["b has another checksum than what was written"]
