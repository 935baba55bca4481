"""Every view against Python that starts from the rollouts, and the documented queries."""

import random
import re
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from statistics import fmean

import pytest
from random_ledger import write

from srpo.control.ledger import connect
from srpo.control.views import VIEWS

DOC = (Path(__file__).parents[3] / "docs/ledger.md").read_text()


@pytest.fixture(scope="module", params=[1, 2, 3])
def made(request, tmp_path_factory):
    """(a connection, {prompt: {epoch: its rows}})"""
    folder = tmp_path_factory.mktemp("views")
    seen = defaultdict(lambda: defaultdict(list))
    for row in write(folder, random.Random(request.param)):
        seen[row.prompt_id][row.epoch].append(row)
    with closing(connect(folder)) as db:
        yield db, seen


def rate(rows) -> float:
    return sum(r.correct == 1 for r in rows) / len(rows)


def state(rows) -> str:
    if len({r.correct for r in rows}) > 1:
        return "mixed"
    return "correct" if rows[0].correct == 1 else "wrong"


def pairs(epochs):
    """(prompt's rows in an epoch, its rows in the next epoch that had it)"""
    ordered = sorted(epochs)
    return [(epochs[a], epochs[b]) for a, b in zip(ordered, ordered[1:], strict=False)]


def view(db, name) -> list[tuple]:
    return db.execute(f"SELECT * FROM {name}").fetchall()


def test_pass_rates(made):
    db, seen = made
    expected = set()
    for prompt, epochs in seen.items():
        for epoch, rows in epochs.items():
            rewards = [r.reward for r in rows]
            expected.add((epoch, rows[0].step, rows[0].stage, rows[0].domain, prompt, 4,
                          sum(r.correct == 1 for r in rows), rate(rows), state(rows), fmean(rewards),
                          max(rewards) - min(rewards), fmean(r.tokens for r in rows), sum(r.truncated for r in rows),
                          1))
    assert set(view(db, "pass_rates")) == expected and len(view(db, "pass_rates")) == len(expected)
    assert {row[8] for row in expected} == {"wrong", "mixed", "correct"}


def test_retention(made):
    db, seen = made
    away: dict[str, int] = {}
    expected = []
    for epoch in sorted({epoch for epochs in seen.values() for epoch in epochs}):
        here = {p: epochs[epoch] for p, epochs in seen.items() if epoch in epochs}
        dropped = [p for p, rows in here.items() if rate(rows) == 1]
        away.update(dict.fromkeys(dropped, epoch + 3))
        returned = sum(until == epoch + 1 for until in away.values())
        kept = len(here) - len(dropped)
        stage = next(iter(here.values()))[0].stage
        expected.append((epoch, stage, len(here), kept, len(dropped), returned, kept / len(here)))
    assert view(db, "retention") == expected
    assert any(row[4] for row in expected) and any(row[5] for row in expected)


def test_flow(made):
    db, seen = made
    expected = Counter((a[0].epoch, b[0].epoch, a[0].domain, state(a), state(b))
                       for epochs in seen.values() for a, b in pairs(epochs))
    assert {row[:5]: row[5] for row in view(db, "flow")} == expected
    assert len(view(db, "flow")) == len(expected)
    assert any(end - start > 1 for start, end, *_ in expected), "no prompt was away"


def test_unsolved(made):
    db, seen = made
    expected = {(prompt, next(iter(epochs.values()))[0].domain, len(epochs), max(epochs), 4 * len(epochs))
                for prompt, epochs in seen.items() if all(rate(rows) == 0 for rows in epochs.values())}
    assert set(view(db, "unsolved")) == expected and expected


def test_regressed(made):
    db, seen = made
    expected = {(a[0].prompt_id, a[0].domain, a[0].epoch, b[0].epoch, rate(a), rate(b), rate(a) - rate(b))
                for epochs in seen.values() for a, b in pairs(epochs) if rate(b) < rate(a)}
    assert set(view(db, "regressed")) == expected and expected


# -- docs/ledger.md ------------------------------------------------------------------------------------------------


def blocks(language: str, heading: str) -> str:
    return re.findall(rf"### {heading}.*?```{language}\n(.*?)```", DOC, re.S)[0]


@pytest.mark.parametrize("query", [q.strip() for q in blocks("sql", "sqlite3").split(";") if q.strip()])
def test_documented_queries_find_something(run, query):
    with closing(connect(run)) as db:
        assert db.execute(query).fetchall()


def test_documented_columns_are_the_views(run):
    described = dict(re.findall(r"^\| (\w+) \| (\w+, [\w, ]+) \|", DOC.split("## Views")[1], re.M))
    with closing(connect(run)) as db:
        columns = {name: ", ".join(c[1] for c in db.execute(f"PRAGMA table_info({name})")) for name in VIEWS}
    assert described == columns


def test_documented_pandas(run, tmp_path):
    pandas = pytest.importorskip("pandas")
    with closing(connect(run)) as db:
        pandas.read_sql("SELECT * FROM flow", db).to_parquet(tmp_path / "flow.parquet")
    names: dict = {}
    exec(blocks("python", "pandas").replace("RUN/", f"{run}/").replace("FOLDER/", f"{tmp_path}/"), names)
    assert len(names["by_epoch"]) == 40 and len(names["lengths"]) and len(names["flow"])
    names["db"].close()


def test_documented_duckdb(run, tmp_path):
    """Where DuckDB and its extension for SQLite are installed."""
    duckdb = pytest.importorskip("duckdb")
    with closing(connect(run)) as db:
        pandas = pytest.importorskip("pandas")
        pandas.read_sql("SELECT * FROM pass_rates", db).to_parquet(tmp_path / "pass_rates.parquet")
    text = blocks("sql", "DuckDB").replace("RUN/", f"{run}/").replace("FOLDER/", f"{tmp_path}/")
    try:
        duckdb.execute("LOAD sqlite")
    except duckdb.Error as e:
        pytest.skip(str(e))
    for query in text.split("LOAD sqlite;")[1].split(";"):
        if query.strip():
            duckdb.execute(query)
            assert query.strip().startswith("ATTACH") or duckdb.fetchall()


def test_views_hold_nothing(run):
    with closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        kinds = dict(db.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')"))
    assert {name for name, kind in kinds.items() if kind == "view"} == set(VIEWS)
