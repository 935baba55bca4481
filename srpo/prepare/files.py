"""Records of JSONL, JSON, Parquet and Arrow files, of directories of them, and of data sets on the Hugging Face hub.

A source is a file, a directory (Parquet or Arrow files if it has any, else JSON; the layout of a data set's repository
and of `save_to_disk`), or `hf:OWNER/NAME` with an optional `:PATTERN` that says which files of the repository, as in
`hf:openai/gsm8k:main/train-*.parquet`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from srpo.data.schema import parse_json
from srpo.errors import UserError
from srpo.files import why

SUFFIXES = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def files(source: str, out: Path | None = None) -> list[Path]:
    """The files of a source, sorted; of a directory, those that are not in `out`. UserError when there are none."""
    path = _download(source) if source.startswith("hf:") else Path(source)
    if not path.exists():
        raise UserError(f"{source}: no such file or directory; a data set of the hub is written hf:OWNER/NAME")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{source}: unknown kind of file; known: {', '.join(SUFFIXES)}")
        return [path]
    found = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and p.name not in _DESCRIPTIONS
                   and not (out and p.resolve().is_relative_to(out.resolve())))
    tables = [p for p in found if p.suffix in (".parquet", ".arrow")]
    if not found:
        raise UserError(f"{source}: holds none of {', '.join(SUFFIXES)}")
    return tables or found


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of one file; of a table or a JSON list the line is the row's number, from 1.

    Raises UserError naming file and line for what is not a record.
    """
    if path.suffix in (".parquet", ".arrow"):
        rows: Iterator[tuple[int, Any]] = enumerate(_table(path), 1)
    elif ".jsonl" in path.name:
        rows = _lines(path)
    else:
        rows = enumerate(_array(path), 1)
    for n, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}:{n}: expected an object, found {type(row).__name__}")
        yield f"{path}:{n}", row


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    _, repository, *pattern = source.split(":", 2)
    patterns = pattern or [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as e:
        raise UserError(f"{source}: cannot be downloaded: {' '.join(str(e).split())}") from None


def count(path: Path) -> int:
    """Records of a file, for a progress bar: lines of JSON that have not been looked at."""
    if path.suffix == ".parquet":
        with _readable(path):
            return int(pq.ParquetFile(path).metadata.num_rows)
    if ".jsonl" in path.name:
        with _open(path) as file:
            return sum(1 for line in file if line.strip())
    return sum(1 for _ in records(path))


def _table(path: Path) -> Iterator[Any]:
    with _readable(path):
        for batch in pq.ParquetFile(path).iter_batches(1000) if path.suffix == ".parquet" else _batches(path):
            yield from batch.to_pylist()


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Of either of Arrow's formats: the stream, which `save_to_disk` writes, or the file."""
    with path.open("rb") as file:
        if file.read(6) == b"ARROW1":
            table = pa.ipc.open_file(path)
            yield from map(table.get_batch, range(table.num_record_batches))
        else:
            yield from pa.ipc.open_stream(path)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        for n, line in enumerate(file, 1):
            if line.strip():
                yield n, parse_json(line, f"{path}:{n}")


def _array(path: Path) -> list[Any]:
    with _open(path) as file:
        rows = parse_json(file.read(), str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, found {type(rows).__name__}")
    return rows


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with _readable(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield file  # type: ignore[misc]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Says which file it is that cannot be read."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f"{path}: not a valid gzip file: {e}") from None
    except pa.ArrowInvalid as e:
        raise UserError(f"{path}: not a valid {path.suffix[1:].capitalize()} file: {why(e)}") from None
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path}: cannot be read: {why(e)}") from None
