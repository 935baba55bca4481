"""`srpo prepare`: filter the rows in shards, then compare them, then verify what is left, then measure it.

Every step's shards are kept in OUT/work, so that a run that was killed goes on where it was; that folder may be deleted
afterwards. Results do not depend on the number of workers.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.prepare import duplicates, report
from srpo.prepare.difficulty import Difficulty, Meter
from srpo.prepare.files import count, files, records
from srpo.prepare.filter import filter_records
from srpo.prepare.rows import Row
from srpo.prepare.store import Store
from srpo.prepare.verify import Answers, program_faults
from srpo.sandbox import allow_unsafe
from srpo.sandbox.confine import die_with_parent
from srpo.terminal import Terminal, counting

SHARD = 1000
"""Rows a shard of the filters."""
BATCH = 200
"""Rows a shard of verification and of difficulty."""

T = TypeVar("T")
Stored = dict[str, Any]
"""A row's fields with `rule` and `detail`, both empty while it stays; see srpo/prepare/store.py."""


def prepare(sources: Sequence[str], out: Path, *, benchmarks: Sequence[str] = (), difficulty: Difficulty | None = None,
            verify: bool = True, workers: int = 1, allow_unsafe_sandbox: bool = False,
            console: Console | None = None) -> dict[str, Any]:
    """Write OUT/train.parquet, rejected.parquet and summary.json; print the summary, and return it.

    Raises UserError naming file and line of a record that cannot be read, and when no row is left.
    """
    if workers < 1:
        raise UserError(f"workers = {workers}: must be at least 1")
    if allow_unsafe_sandbox:
        allow_unsafe()
    console = console or Terminal(stderr=True)
    inputs = [path for source in sources for path in files(source, out)]
    if own := [path for path in inputs if path.resolve().is_relative_to(out.resolve())]:
        raise UserError(f"{own[0]}: is in {out}, which would be overwritten; choose another --out")
    against = [path for source in benchmarks for path in files(source)]
    store = Store(out / "work", ("filter", len(inputs)), [*inputs, *against])
    with counting(console) as progress:
        rows = _filter(inputs, tuple(map(str, against)), store, workers, progress)
        if not rows:
            raise UserError(f"{', '.join(sources)}: no rows in it")
        _number(rows)
        with closing(Answers(workers)) as answers:
            _compare(rows, answers.agree)
            if verify:
                _verify(rows, answers, store, workers, progress)
        kept = [row for row in rows if not row["rule"]]
        if not kept:
            raise UserError(f"no row is left of {len(rows)}; what dropped most: " + ", ".join(
                f"{rule} {n}" for rule, n in Counter(r["rule"] for r in rows).most_common(3)))
        if difficulty:
            _measure(kept, difficulty, out / "work" / "difficulty", workers, progress)
    return report.write(rows, out, console)


# -- one row at a time ------------------------------------------------------------------------------------------------


def _filter(inputs: Sequence[Path], benchmarks: tuple[str, ...], store: Store, workers: int,
            progress: Progress) -> list[Stored]:
    bar = progress.add_task("filter", total=sum(map(count, inputs)))
    names: list[str] = []

    def missing() -> Iterator[tuple[str, list[tuple[str, str, dict[str, Any]]]]]:
        for i, path in enumerate(inputs):
            stem = f"{path.resolve().parent.name}/{path.name.split('.')[0]}"
            for j, chunk in enumerate(_batches(enumerate(records(path)), SHARD)):
                names.append(f"filter-{i:03}-{j:06}")
                if store.has(names[-1]):
                    progress.advance(bar, len(chunk))
                else:
                    yield names[-1], [(where, f"{stem}/{n}", record) for n, (where, record) in chunk]

    def done(name: str, stored: list[Stored]) -> None:
        store.put_rows(name, stored)
        progress.advance(bar, len(stored))

    _in_processes(filter_records, missing(), benchmarks, workers, done)
    return [row for name in names for row in store.rows(name)]


def _in_processes(function: Callable[[Any, Any], T], tasks: Iterable[tuple[str, Any]], common: Any, workers: int,
                  done: Callable[[str, T], None]) -> None:
    """function(task, common) in processes; `done` gets each result here, in the order they finish. Few tasks wait at a
    time, so that the inputs need not fit into memory."""
    # Not forks: the progress bar is a thread. A fork server would outlive a kill of this process, with its workers.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), die_with_parent) as pool:
        running: dict[Future[T], str] = {}
        try:
            for name, task in tasks:
                running[pool.submit(function, task, common)] = name
                if len(running) > 2 * workers:
                    _collect(running, done)
            while running:
                _collect(running, done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _collect(running: dict[Future[T], str], done: Callable[[str, T], None]) -> None:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        done(running.pop(future), future.result())


# -- rows together ----------------------------------------------------------------------------------------------------


def _number(rows: Sequence[Stored]) -> None:
    """Make ids unique: what two sources call the same gets -2, -3, ..., unless that is somebody's id."""
    given = {row["id"] for row in rows}
    seen: Counter[str] = Counter()
    for row in rows:
        id = row["id"]
        seen[id] += 1
        while seen[id] > 1 and f"{id}-{seen[id]}" in given:
            seen[id] += 1
        if seen[id] > 1:
            row["id"] = f"{id}-{seen[id]}"


def _compare(rows: Sequence[Stored], agree: Callable[[str, str], bool]) -> None:
    kept = [row for row in rows if not row["rule"]]
    found = list(duplicates.find(
        [r["prompt"] for r in kept], [r["signature"] for r in kept], [r["exact"] for r in kept],
        [r["answer"] if r["domain"] == "math" else "" for r in kept], agree))
    for i, rule, other in found:
        kept[i] |= {"rule": rule, "detail": kept[other]["id"]}


# -- what is left -----------------------------------------------------------------------------------------------------


def _verify(rows: Sequence[Stored], answers: Answers, store: Store, workers: int, progress: Progress) -> None:
    kept = [row for row in rows if not row["rule"]]
    for domain in ("math", "code"):
        left = [row for row in kept if row["domain"] == domain]
        bar = progress.add_task(f"verify {domain}", total=len(left))
        for i, batch in enumerate(_batches(left, BATCH)):
            name = f"verify-{domain}-{i:06}"
            if (faults := store.get(name)) is None:
                objects = [_row(row) for row in batch]
                faults = answers.faults(objects) if domain == "math" else program_faults(objects, workers)
                store.put(name, faults)
            for row, fault in zip(batch, faults, strict=True):
                if fault:
                    row["rule"], row["detail"] = fault
            progress.advance(bar, len(batch))


def _measure(kept: Sequence[Stored], settings: Difficulty, folder: Path, workers: int, progress: Progress) -> None:
    """Add `pass_rate` and `difficulty` to the rows."""
    store = Store(folder, (asdict(settings), [row["id"] for row in kept]), sorted(Path(settings.model).glob("*")))
    bar = progress.add_task("difficulty", total=len(kept))
    meter: Meter | None = None
    try:
        for i, batch in enumerate(_batches(kept, BATCH)):
            name = f"difficulty-{i:06}"
            if (rates := store.get(name)) is None:
                meter = meter or Meter(settings, workers)
                rates = meter.pass_rates([_problem(row) for row in batch])
                store.put(name, rates)
            for row, rate in zip(batch, rates, strict=True):
                row |= {"pass_rate": rate, "difficulty": settings.name(rate)}
            progress.advance(bar, len(batch))
    finally:
        if meter:
            meter.close()


def _row(stored: Stored) -> Row:
    fields = {name: stored[name] for name in Row.__dataclass_fields__}
    return Row(**fields | {"tests": json.loads(stored["tests"]) if stored["tests"] else None})


def _problem(stored: Stored) -> Problem:
    row = _row(stored)
    return Problem(row.id, row.domain, row.prompt, row.answer, row.tests)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
