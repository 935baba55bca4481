"""Writing files so that a reader, or a run that resumes, finds them whole or not at all, also after a power cut."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.errors import Fault, UserError

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, a missing permission and the like become a UserError that names `path`; storage that does not
    answer, a Fault."""
    try:
        yield
    except OSError as e:
        kind = Fault if e.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT) else UserError
        raise kind(f"{path}: cannot be written: {why(e)}") from e


def why(error: Exception) -> str:
    """What an error of the system or of Arrow says, on one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """What is written to the path that this gives stands at `path` afterwards, and is on the disk: a crash before that
    leaves what stood there, and perhaps a file *.part. Raises UserError where it cannot be written."""
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        try:
            yield part
            sync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or a directory's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet."""
    import pyarrow.parquet as pq

    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd")
