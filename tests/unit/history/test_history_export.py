"""CSV and Parquet hold what the ledger holds."""

import csv
from contextlib import closing

import pyarrow.parquet as pq
import pytest

from srpo.control.ledger import START, connect
from srpo.control.views import VIEWS
from srpo.errors import UserError
from srpo.history import export
from srpo.history.tables import Only

NAMES = [*START, *VIEWS]


@pytest.fixture
def db(run):
    with closing(connect(run)) as db:
        yield db


def rows(db, name, where="TRUE"):
    return db.execute(f"SELECT * FROM {name} WHERE {where}").fetchall()


def read(file):
    return [tuple(row.values()) for row in pq.read_table(file).to_pylist()]


def test_a_folder_gets_every_table_and_view(db, tmp_path):
    written = export.export_all(db, tmp_path / "new" / "out")
    assert sorted(f.stem for f in written) == sorted(NAMES)
    assert sorted(p.name for p in (tmp_path / "new" / "out").iterdir()) == sorted(f"{name}.parquet" for name in NAMES)
    for file, count in written.items():
        assert read(file) == rows(db, file.stem) and count == len(rows(db, file.stem)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_csv(db, name, tmp_path):
    file = tmp_path / "any.csv"
    export.export_one(db, name, file, Only())
    header, *lines = csv.reader(file.open())
    expected = db.execute(f"SELECT * FROM {name}")
    assert header == [c[0] for c in expected.description]
    for line, row in zip(lines, expected, strict=True):
        assert [type(value)(text) if value is not None else text or None for text, value in
                zip(line, row, strict=True)] == list(row)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batches_make_no_difference(db, monkeypatch, tmp_path, batch):
    monkeypatch.setattr(export, "BATCH", batch)
    export.export_one(db, "decisions", tmp_path / "d.parquet", Only())
    assert read(tmp_path / "d.parquet") == rows(db, "decisions")


def test_a_domain_and_an_epoch(db, tmp_path):
    export.export_one(db, "prompts", tmp_path / "p.parquet", Only(3, "code"))
    assert read(tmp_path / "p.parquet") == rows(db, "prompts", "epoch = 3 AND domain = 'code'") != []
    with pytest.raises(UserError, match="--domain code: decisions has no column domain"):
        export.export_one(db, "decisions", tmp_path / "d.parquet", Only(domain="code"))


def test_what_cannot_be_exported(db, tmp_path):
    with pytest.raises(UserError, match="--table rolouts: choose from rollouts, prompts, steps"):
        export.export_one(db, "rolouts", tmp_path / "x.csv", Only())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/x.csv: cannot be written"):
        export.export_one(db, "events", tmp_path / "file" / "x.csv", Only())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_the_old_file(db, monkeypatch, tmp_path):
    (tmp_path / "e.csv").write_text("old")
    monkeypatch.setattr(export.pa, "record_batch", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"e\.csv: cannot be written: No space left"):
        export.export_one(db, "events", tmp_path / "e.csv", Only())
    assert (tmp_path / "e.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
