"""Writing files so that a reader, or a run that resumes, finds them whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, a missing permission and the like become a UserError that names `path`."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror or e}") from e


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """What is written to the path that this gives stands at `path` afterwards."""
    part = path.with_suffix(".part")
    with writing(path):
        yield part
        os.replace(part, path)


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
