"""Tables and views of the ledger as CSV or Parquet, a batch of rows at a time."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from srpo.control.ledger import START
from srpo.control.views import VIEWS
from srpo.errors import UserError
from srpo.files import replacing, writing
from srpo.history.tables import Only

BATCH = 1 << 16
"""Rows in memory, and in a row group of Parquet."""
TYPES = {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string()}
COMPUTED = {"pass_rate": "REAL", "mean_tokens": "REAL", "retained": "REAL", "pass_rate_before": "REAL",
            "pass_rate_after": "REAL", "fell": "REAL", "state": "TEXT", "before": "TEXT", "after": "TEXT",
            "domain": "TEXT"}
"""Of a view's columns SQLite knows no type where they are computed; the others are integers."""


def export_all(db: sqlite3.Connection, folder: Path) -> dict[Path, int]:
    """Every table and view, as Parquet; file -> rows."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return {file: export_one(db, name, file, Only())
            for name in (*START, *VIEWS) for file in [folder / f"{name}.parquet"]}


def export_one(db: sqlite3.Connection, name: str, file: Path, only: Only) -> int:
    """A table or view in the order of its rows; the suffix says the format. How many rows.

    Raises UserError when there is no such table, it lacks a column that `only` asks for, or the file cannot be written.
    """
    if name not in (*START, *VIEWS):
        raise UserError(f"--table {name}: choose from {', '.join((*START, *VIEWS))}")
    columns = {column: TYPES[kind or COMPUTED.get(column, "INTEGER")]
               for _, column, kind, *_ in db.execute(f"PRAGMA table_info({name})")}
    for column, value in (("epoch", only.epoch), ("domain", only.domain)):
        if value is not None and column not in columns:
            raise UserError(f"--{column} {value}: {name} has no column {column}; export it whole")
    order = "ORDER BY rowid" if name in START else ""
    rows = db.execute(f"SELECT * FROM {name} WHERE {only.where()} {order}", only.values)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        return _write(rows, pa.schema(columns), part, file.suffix)


def _write(rows: sqlite3.Cursor, schema: pa.Schema, part: Path, suffix: str) -> int:
    count = 0
    with _writer(part, schema, suffix) as writer:
        while batch := rows.fetchmany(BATCH):
            columns = zip(*batch, strict=True)
            arrays = [pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(batch)
    return count


def _writer(part: Path, schema: pa.Schema, suffix: str) -> Any:
    if suffix == ".csv":
        return pyarrow.csv.CSVWriter(part, schema, write_options=pyarrow.csv.WriteOptions(quoting_style="needed"))
    return pyarrow.parquet.ParquetWriter(part, schema, compression="zstd")
