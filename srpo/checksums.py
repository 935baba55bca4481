"""Checksums of a directory's files: whether what is read years later, or after a bad disk, is what was written.

CRC-32, because the point is flipped bits and torn files, not forgery, and because it is the fastest that the standard
library has. Each process checks what it wrote itself, out of the page cache, in the background.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "checksums.json"
"""File -> [bytes, CRC-32], of all other files of the directory."""

_NOTE = ".crc32"
_CHUNK = 2**20
_AT_ONCE = 8
"""Files that are checked at once: one stream is far from what a file system of many disks gives."""


def note(file: Path) -> None:
    """Leave the checksum of a complete file beside it, for `collect`."""
    file.with_name(file.name + _NOTE).write_text(json.dumps(_measure(file)))


def collect(directory: Path) -> None:
    """Make notes, and what has none, into the manifest."""
    notes = [file for file in directory.iterdir() if file.name.endswith(_NOTE)]
    manifest = {file.name.removesuffix(_NOTE): json.loads(file.read_text()) for file in notes}
    for file in notes:
        file.unlink()
    manifest |= {file.name: _measure(file) for file in directory.iterdir() if file.name not in manifest}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=0, sort_keys=True))


def verify(directory: Path, share: int = 0, shares: int = 1, wanted: Callable[[str], bool] | None = None) -> list[str]:
    """What is wrong with this share of the files, or of those whose name is wanted, a line each; nothing if they are
    as they were written."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        files = sorted(manifest.items(), key=lambda item: (-item[1][0], item[0]))
    except (OSError, ValueError, AttributeError, TypeError, LookupError) as e:
        return [f"{MANIFEST} cannot be read: {e}"]
    files = [(name, expected) for name, expected in files if wanted is None or wanted(name)][share::shares]
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # reading and CRC-32 let other threads run
        found = pool.map(lambda file: _damage(directory / file[0], file[1]), files)
        return [why for why in found if why]


def _damage(file: Path, expected: list[int]) -> str | None:
    try:
        size, crc = _measure(file)
    except OSError as e:
        return f"{file.name} cannot be read: {e.strerror}"
    if size != expected[0]:
        return f"{file.name} has {size} bytes, not the {expected[0]} that were written"
    return None if crc == expected[1] else f"{file.name} has another checksum than what was written"


def _measure(file: Path) -> tuple[int, int]:
    size = crc = 0
    buffer = memoryview(bytearray(_CHUNK))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            size, crc = size + count, zlib.crc32(buffer[:count], crc)
    return size, crc
