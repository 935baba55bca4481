"""What `srpo history` does with its arguments."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from os.path import commonprefix
from pathlib import Path

from rich.console import Console

from srpo.control.ledger import connect
from srpo.errors import UserError
from srpo.history import tables
from srpo.history.export import export_all, export_one
from srpo.history.tables import Only
from srpo.terminal import Terminal, wide


def show(run: Path, prompt: str | None, epoch: int | None, domain: str | None, limit: int,
         console: Console | None = None) -> None:
    """Print the tables, or one prompt's."""
    console = console or wide()
    with closing(_open(run)) as db:
        _check(db, epoch, domain)
        if prompt is None:
            for table in tables.tables(db, Only(epoch, domain), limit):
                console.print(table, "")
        elif (table := tables.prompt(db, prompt)).row_count:
            console.print(table)
        else:
            known = (p for p, in db.execute("SELECT DISTINCT prompt_id FROM prompts"))
            raise UserError(f"--prompt {prompt}: {run} has no such prompt; did you mean {nearest(prompt, known)}?")


def export(run: Path, target: Path, table: str, epoch: int | None, domain: str | None) -> None:
    """Write one table, or all of them, and print what was written."""
    with closing(_open(run)) as db:
        _check(db, epoch, domain)
        if target.suffix in (".csv", ".parquet"):
            written = {target: export_one(db, table, target, Only(epoch, domain))}
        elif target.suffix:
            raise UserError(f"--export {target}: give a folder, a FILE.csv or a FILE.parquet")
        elif epoch is not None or domain is not None:
            raise UserError("--epoch, --domain: a folder gets every table whole; give --export a FILE.parquet or a "
                            "FILE.csv, and --table")
        else:
            written = export_all(db, target)
    console = Terminal(soft_wrap=True)
    for file, rows in written.items():
        console.print(f"{file}: {rows:,} rows", highlight=False)


def nearest(wanted: str, known: Iterable[str]) -> str:
    """The id that shares the longest beginning and end with a wanted one, letters' case apart: a slip of one letter
    leaves the rest. One pass, as there may be millions."""
    wanted = wanted.casefold()

    def shared(name: str) -> tuple[int, int]:
        name = name.casefold()
        front = len(commonprefix((wanted, name)))
        back = len(commonprefix((wanted[front:][::-1], name[front:][::-1])))
        return front + back, -len(name)

    return max(known, key=shared)


def _open(run: Path) -> sqlite3.Connection:
    """A ledger with something in it, as it is at this moment: the run may go on."""
    db = connect(run)
    db.isolation_level = None
    db.execute("BEGIN")
    if db.execute("SELECT 1 FROM prompts LIMIT 1").fetchone() is None:
        raise UserError(f"{run}: the ledger holds no rollouts yet; the first come with the run's first step")
    return db


def _check(db: sqlite3.Connection, epoch: int | None, domain: str | None) -> None:
    first, last = db.execute("SELECT MIN(epoch), MAX(epoch) FROM prompts").fetchone()
    if epoch is not None and not first <= epoch <= last:
        raise UserError(f"--epoch {epoch}: the ledger has epochs {first} to {last}")
    if domain is not None:
        known = sorted(d for d, in db.execute("SELECT DISTINCT domain FROM prompts"))
        if domain not in known:
            raise UserError(f"--domain {domain}: the ledger has {', '.join(known)}")
