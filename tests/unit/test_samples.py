"""Stored responses: what is drawn, written, forgotten and read again, to the byte."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from srpo import samples
from srpo.errors import UserError
from srpo.samples import StoredResponse

TEXT = "Wait, 2 + 2 = 4.</think> <answer>4</answer>"


def row(step: int = 1, sample: int = 0, response: str = TEXT) -> StoredResponse:
    return StoredResponse(step, 1, "maths", "sum-1", sample, "math", "<s>User: 2 + 2?\nAssistant: <think>", response,
                          1.0, 1.1, {"accuracy": 1.0, "format": 0.1}, "", 17, False, False)


def stored(run: Path, *steps: int) -> Path:
    for step in steps:
        samples.write(run, step, [row(step)])
    return run


def test_what_is_read_is_what_was_written(tmp_path):
    rows = [row(12), row(12, 5, "等等，不对。\r\n\x00 \ufffd")]
    samples.write(tmp_path, 12, rows)
    path = tmp_path / "samples" / "step-00000012.parquet"
    assert pq.read_metadata(path).row_group(0).column(7).compression == "ZSTD"
    assert pq.read_schema(path).names == [
        "step", "epoch", "stage", "prompt_id", "sample", "domain", "prompt", "response", "correct", "reward", "parts",
        "reason", "tokens", "truncated", "failed"]
    (batch,) = samples.read(tmp_path, 12)
    assert [{**r, "parts": json.loads(r["parts"])} for r in batch.to_pylist()] == [asdict(r) for r in rows]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        samples.write(tmp_path / folder, 3, [row(3, i, "x" * i) for i in range(300)])
        files.append((tmp_path / folder / "samples" / "step-00000003.parquet").read_bytes())
    assert files[0] == files[1]


def test_the_draw_is_of_the_seed_and_the_step_alone():
    drawn = samples.draw(8192, 256, seed=1, step=7)
    assert drawn == samples.draw(8192, 256, seed=1, step=7)
    assert drawn == sorted(set(drawn)) and len(drawn) == 256 and 0 <= drawn[0] < drawn[-1] < 8192
    assert drawn != samples.draw(8192, 256, seed=1, step=8) and drawn != samples.draw(8192, 256, seed=2, step=7)
    assert samples.draw(4, 256, seed=1, step=1) == [0, 1, 2, 3]


def test_every_response_is_as_likely_to_be_drawn():
    counts = [0] * 20
    for step in range(2000):
        for i in samples.draw(20, 5, seed=1, step=step):
            counts[i] += 1
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in counts)


def test_what_came_after_a_checkpoint_is_forgotten(tmp_path):
    stored(tmp_path, 1, 2, 10, 11)
    half = tmp_path / "samples" / "step-00000012.part"
    half.write_bytes(b"PAR1")
    samples.forget(tmp_path, 2)
    assert samples.steps(tmp_path) == [1, 2] and not half.exists()
    samples.forget(tmp_path, -1)
    with pytest.raises(UserError, match=f"{tmp_path}: not a run folder, there is no config.yaml in it"):
        samples.steps(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="there are no stored responses.*the run's first step.*logging.responses"):
        samples.steps(tmp_path)
    samples.forget(tmp_path / "fresh", -1)


def test_a_range_of_steps_and_some_columns(tmp_path):
    stored(tmp_path, 1, 2, 3, 20)
    batches = list(samples.read_all(tmp_path, range(2, 20), ["step", "response"]))
    assert [b.to_pylist() for b in batches] == [[{"step": s, "response": TEXT}] for s in (2, 3)]
    assert sum(b.num_rows for b in samples.read_all(tmp_path)) == 4


def test_a_reader_holds_few_rows_at_a_time(tmp_path):
    samples.write(tmp_path, 1, [row(1, i) for i in range(1000)])
    assert [b.num_rows for b in samples.read(tmp_path, 1)] == [256, 256, 256, 232]


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    stored(tmp_path, 1)
    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UserError, match=r"step-00000002.parquet: cannot be written: No space left on device$"):
        samples.write(tmp_path, 2, [row(2)])
    assert samples.steps(tmp_path) == [1]


@pytest.mark.parametrize("content", [b"", b"PAR1 cut short"])
def test_a_damaged_file_is_named(tmp_path, content):
    stored(tmp_path, 1)
    (tmp_path / "samples" / "step-00000001.parquet").write_bytes(content)
    with pytest.raises(UserError, match="step-00000001.parquet: cannot be read: .*delete it"):
        list(samples.read(tmp_path, 1))


def test_a_step_or_column_that_is_missing_is_named(tmp_path):
    stored(tmp_path, 1)
    with pytest.raises(UserError, match="step-00000002.parquet: no such file; nothing was stored of step 2"):
        list(samples.read(tmp_path, 2))
    with pytest.raises(UserError, match="has no column 'thoughts'"):
        list(samples.read(tmp_path, 1, ["thoughts"]))
