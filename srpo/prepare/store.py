"""What is done and need not be done again: a folder of shards, each written whole or not at all.

The folder belongs to one set of sources and options; with others, or with other rules, it begins anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from srpo.files import write_json, write_table, writing

_TEXT = ("id", "domain", "prompt", "answer", "tests", "solution", "source", "where", "rule", "detail")
ROWS = pa.schema([*((name, pa.string()) for name in _TEXT), ("exact", pa.binary()), ("signature", pa.binary())])


class Store:
    """`key` says what the shards depend on; `files` are the inputs, told apart by size and time of change."""

    def __init__(self, folder: Path, key: Any, files: Sequence[Path]):
        stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        srpo = Path(__file__).parents[1]
        code = [path.read_bytes() for part in ("prepare", "rewards", "sandbox")
                for path in sorted((srpo / part).glob("*.py"))]
        fingerprint = hashlib.sha256(repr((key, stamps)).encode() + b"".join(code)).hexdigest()
        self._folder, stamp = folder, folder / "key"
        with writing(folder):
            if not stamp.exists() or stamp.read_text() != fingerprint:
                if folder.exists():
                    shutil.rmtree(folder)
                folder.mkdir(parents=True)
                stamp.write_text(fingerprint)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self._folder / f"{name}.parquet").to_pylist()

    def has(self, name: str) -> bool:
        return (self._folder / f"{name}.parquet").exists()

    def put_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        write_table(self._folder / f"{name}.parquet", pa.Table.from_pylist(rows, ROWS))

    def get(self, name: str) -> Any:
        """A small result, or None."""
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def put(self, name: str, value: Any) -> None:
        write_json(self._folder / f"{name}.json", value)
