"""What a problem is, and reading problems from JSONL and Parquet.

One object a line: `id`, `domain`, `prompt`, and for "math" an `answer` (the final one), for "code" `tests` (what the
program must pass, see srpo/sandbox), for "other" whatever a user's function reads (`reward.custom` with `role:
correct`). Worked solutions for the warm start carry `response` too. The Parquet that `srpo prepare` writes has the same
columns, `tests` as JSON text, what it measured (`difficulty`, `pass_rate`: the share of a model's responses that were
right), and what training does not read: `source`, `solution`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srpo.errors import UserError
from srpo.files import why

DOMAINS = ("math", "code", "other")
DIFFICULTIES = ("easy", "medium", "hard")
_UNREAD = {"source", "solution"}


@dataclass(frozen=True)
class Problem:
    """`extra`: of domain other, the fields that have no name here."""

    id: str
    domain: str
    prompt: str
    answer: str | None = None
    tests: dict[str, Any] | None = None
    response: str | None = None
    difficulty: str | None = None
    pass_rate: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def read_problems(paths: Iterable[str | Path], *, need_response: bool = False) -> list[Problem]:
    """All problems of some JSONL and Parquet files, in order. Raises UserError naming file, line (of Parquet, row) and
    field."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for path in paths:
        before = len(problems)
        for where, row in (_table if str(path).endswith(".parquet") else _lines)(Path(path)):
            problem = parse_problem(where, row, need_response=need_response)
            if problem.id in seen:
                raise UserError(f"{where}: id {problem.id!r} was used before, at {seen[problem.id]}; make it unique")
            seen[problem.id] = where
            problems.append(problem)
        if len(problems) == before:
            raise UserError(f"{path}: no problems in it")
    return problems


def check_disjoint(train: Iterable[Problem], held_out: Iterable[Problem]) -> None:
    """Raise UserError when a held-out problem has the id of a training problem."""
    if common := {p.id for p in train} & {p.id for p in held_out}:
        raise UserError(f"data.eval: problem {min(common)!r} has the id of one in data.train; ids must differ")


def questions(problems: Iterable[Problem]) -> str:
    """A fingerprint of what problems ask; not of what is right, which may be mended while a run goes on."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(f"{problem.id!r} {problem.prompt!r}\n".encode())
    return digest.hexdigest()[:16]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with _reading(path), path.open("rb") as file:
        for n, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{n}"
                yield where, parse_json(line, where)


def parse_json(text: bytes | str, where: str) -> Any:
    """The value, of UTF-8 with or without a byte order mark. Raises UserError that begins with `where`."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not valid UTF-8: {e.reason} at byte {e.start + 1}") from None
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: not valid JSON: {e.msg} at column {e.colno}") from None
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{where}: JSON that cannot be read: {str(e).split(';')[0]}") from None


def _table(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(path):
        try:
            batches = pq.ParquetFile(path).iter_batches(1000)
            for n, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                where = f"{path}:{n}"
                row = {key: value for key, value in row.items() if value is not None}
                if isinstance(row.get("tests"), str):
                    row["tests"] = parse_json(row["tests"], f"{where}: field 'tests'")
                yield where, row
        except pa.ArrowInvalid as e:
            raise UserError(f"{path}: not valid Parquet: {why(e)}") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such data file") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {why(e)}") from None


def parse_problem(where: str, row: Any, *, need_response: bool = False) -> Problem:
    """The problem in a row. Raises UserError that begins with `where` and names the field."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    known = set(Problem.__dataclass_fields__) - {"extra"}
    row = {name: value for name, value in row.items() if value is not None or name not in known}  # null: absent
    extra = {}
    if row.get("domain") == "other":
        extra = {name: _json(value, f"{where}: field {name!r}") for name, value in row.items() if name not in known}
        row = {name: value for name, value in row.items() if name in known}
    row = {name: value for name, value in row.items() if name not in _UNREAD}
    if unknown := sorted(set(row) - known):
        names = ", ".join(name for name in Problem.__dataclass_fields__ if name in known)
        raise UserError(f"{where}: unknown field {unknown[0]!r}; fields: {names}")
    needed: dict[str, type] = {"id": str, "domain": str, "prompt": str}
    if need_response:
        needed["response"] = str
    elif row.get("domain") == "math":
        needed["answer"] = str
    elif row.get("domain") == "code":
        needed["tests"] = dict
    elif row.get("domain") == "other":
        needed |= {name: kind for name, kind in (("answer", str), ("tests", dict)) if name in row}
    for name, kind in needed.items():
        if name not in row:
            raise UserError(f"{where}: field {name!r} is missing")
        if not isinstance(row[name], kind):
            raise UserError(f"{where}: field {name!r} must be {kind.__name__}, found {type(row[name]).__name__}")
        if not row[name]:
            raise UserError(f"{where}: field {name!r} is empty")
    if row["domain"] not in DOMAINS:
        raise UserError(f"{where}: domain = {row['domain']!r}; choose one of {', '.join(DOMAINS)}")
    if row.get("difficulty", DIFFICULTIES[0]) not in DIFFICULTIES:
        raise UserError(f"{where}: difficulty = {row['difficulty']!r}; choose one of {', '.join(DIFFICULTIES)}")
    rate = row.get("pass_rate", 0.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise UserError(f"{where}: pass_rate = {rate!r}; must be a number from 0 to 1")
    return Problem(**row, extra=extra)


def _json(value: Any, what: str) -> Any:
    """The value as it is; graders are told of it in JSON, and Parquet holds more than that."""
    try:
        json.dumps(value)
    except TypeError as e:
        raise UserError(f"{what}: {e}; write it as text or numbers") from None
    return value
