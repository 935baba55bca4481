"""Stored responses: of every step some, with their prompt and grade, for people and for `srpo analyze` to read.

RUN/samples/step-00000012.parquet is one step's: a row a response in the step's order, `COLUMNS` of it. The step draws
them at random from all its responses, by the run's seed and the step's number, so that frequencies in them estimate
those in the step, and a resumed run writes the same bytes. Resuming deletes the files beyond the checkpoint.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from srpo.errors import UserError
from srpo.files import sync, why, write_table, writing
from srpo.folder import config_file

COLUMNS = pa.schema([
    ("step", pa.int32()), ("epoch", pa.int32()), ("stage", pa.string()), ("prompt_id", pa.string()),
    ("sample", pa.int32()), ("domain", pa.string()), ("prompt", pa.string()), ("response", pa.string()),
    ("correct", pa.float64()), ("reward", pa.float64()), ("parts", pa.string()), ("reason", pa.string()),
    ("tokens", pa.int32()), ("truncated", pa.bool_()), ("failed", pa.bool_())])
"""Of a file, in this order."""

BATCH = 256
"""Rows that a reader holds at a time."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`prompt`: the text that the model continued, template and special tokens included. `response`: the text that was
    graded. `correct` in [0, 1]; `parts`: what `reward` is the sum of; `tokens`: the response's length; `failed`: it
    could not be graded, `reason` says why."""

    step: int
    epoch: int
    stage: str
    prompt_id: str
    sample: int
    domain: str
    prompt: str
    response: str
    correct: float
    reward: float
    parts: dict[str, float]
    reason: str
    tokens: int
    truncated: bool
    failed: bool


def draw(responses: int, count: int, seed: int, step: int) -> list[int]:
    """Which of a step's responses to store: `count` places, ascending; all of them where there are no more."""
    rng = random.Random(f"stored responses of {seed} {step}")
    return sorted(rng.sample(range(responses), min(count, responses)))


def write(run: Path, step: int, rows: Sequence[StoredResponse]) -> None:
    """The file is on the disk when this returns, before a checkpoint counts on it: a crash loses the one that is being
    written, of a step that the run repeats. Raises UserError where it cannot be written."""
    path = _path(run, step)
    with writing(path):
        if not path.parent.exists():
            path.parent.mkdir()
            sync(run)
    columns = [asdict(row) | {"parts": json.dumps(row.parts)} for row in rows]
    write_table(path, pa.Table.from_pylist(columns, COLUMNS))


def forget(run: Path, step: int) -> None:
    """Delete what was stored after a step, and what a killed run left half written."""
    later = [path for number, path in _files(run) if number > step]
    for path in (*later, *(run / "samples").glob("*.part")):
        with writing(path):
            path.unlink()


def steps(run: Path) -> list[int]:
    """Steps of which there are responses. Raises UserError where there are none at all."""
    if not (found := _files(run)):
        config_file(run)
        raise UserError(f"{run}: there are no stored responses, {run / 'samples'} has no step-*.parquet; they come "
                        "with the run's first step, unless logging.responses is 0")
    return [number for number, _ in found]


def size(run: Path) -> int:
    """Bytes of all the files."""
    return sum(path.stat().st_size for _, path in _files(run))


def read(run: Path, step: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A step's responses, `BATCH` rows at a time; `columns` of them, or all. Raises UserError where the file is missing
    or damaged, or is no file of stored responses."""
    path = _path(run, step)
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns or COLUMNS.names if name not in file.schema_arrow.names]:
                raise UserError(f"{path}: has no column {missing[0]!r}; it was not written by this version of srpo")
            yield from file.iter_batches(BATCH, columns=columns)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; nothing was stored of step {step}") from None
    except (OSError, pa.ArrowInvalid) as e:
        raise UserError(f"{path}: cannot be read: {why(e)}; delete it to go on without this step's responses") from None


def read_all(run: Path, which: range | None = None, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The same of every step, or of those in `which`, in order."""
    for step in steps(run):
        if which is None or step in which:
            yield from read(run, step, columns)


def _path(run: Path, step: int) -> Path:
    return run / "samples" / f"step-{step:08d}.parquet"


def _files(run: Path) -> list[tuple[int, Path]]:
    paths = (run / "samples").glob("step-*.parquet")
    return sorted((int(number), path) for path in paths if (number := path.stem.removeprefix("step-")).isdecimal())
