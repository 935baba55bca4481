"""What `--data` names, as problems: a benchmark, any file that `srpo prepare` reads, or one under another name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srpo.config import CustomReward
from srpo.data.schema import DOMAINS, Problem, parse_problem
from srpo.errors import UserError
from srpo.evaluation.benchmarks import BENCHMARKS
from srpo.prepare.files import SUFFIXES, files, records
from srpo.prepare.readers import row
from srpo.rewards.compose import check_problems


@dataclass(frozen=True)
class DataSet:
    """Problems with ids NAME/ID. `files` are the SHA-256 of what was read, by path; `digest` that of the problems: what
    they are, whatever file they are from."""

    name: str
    problems: list[Problem]
    files: dict[str, str]
    digest: str


def read(entries: Sequence[str], data_dir: Path | None, style: str, custom: Sequence[CustomReward] = ()
         ) -> list[DataSet]:
    """The data sets of `--data`, in order; `style` and `custom` are as in reward. Raises UserError for what is not
    there, cannot be read or cannot be graded."""
    named = [_named(entry) for entry in entries]
    for i, (name, _) in enumerate(named):
        if name in dict(named[:i]):
            raise UserError(f"--data {entries[i]}: there is a data set {name!r} already; write it as NAME={entries[i]}")
    sets = [_data_set(name, *_files(name, source, data_dir), style) for name, source in named]
    check_problems([p for s in sets for p in s.problems], custom)
    return sets


def _named(entry: str) -> tuple[str, str | None]:
    """(name, source); no source where a benchmark is only named."""
    if entry in BENCHMARKS:
        return entry, None
    if given := re.fullmatch(r"([\w.-]+)=(.+)", entry):
        return given[1], given[2]
    path = entry.split(":")[1] if entry.startswith("hf:") else entry
    last = path.rstrip("/").split("/")[-1]
    name = re.sub(r"[^\w-]+", "-", last.split(".")[0]).strip("-")
    if not name:
        raise UserError(f"--data {entry}: gives no name; write it as NAME={entry}")
    return name, entry


def _files(name: str, source: str | None, data_dir: Path | None) -> tuple[str, list[Path]]:
    if source is not None:
        try:
            return source, files(source)
        except UserError as e:
            known = "" if "=" in source or "/" in source else f"; benchmarks: {', '.join(BENCHMARKS)}"
            raise UserError(f"--data {e}{known}") from None
    if data_dir and (found := _at_hand(name, data_dir)):
        return str(data_dir), found
    hub = BENCHMARKS[name].source
    try:
        return hub, files(hub)
    except UserError as e:
        where = f"not in --data-dir {data_dir}, and " if data_dir else ""
        raise UserError(f"--data {name}: {where}the hub does not give it: {e}; write it as {name}=FILE") from None


def _at_hand(name: str, folder: Path) -> list[Path]:
    """FOLDER/NAME.jsonl or another suffix; else the files of FOLDER/NAME: those called NAME or test..., or all."""
    if not folder.is_dir():
        raise UserError(f"--data-dir {folder}: no such directory")
    direct = [p for p in sorted(folder.iterdir()) if p.is_file() and _stem(p) == name]
    if direct:
        return direct[:1]
    if not (folder / name).is_dir():
        return []
    found = files(str(folder / name))
    for chosen in ([p for p in found if _stem(p) == name], [p for p in found if _stem(p).startswith("test")]):
        if chosen:
            return chosen
    return found


def _stem(path: Path) -> str:
    """Lower-case name without a suffix that is known; else nothing."""
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    return path.name.removesuffix(suffix).lower() if suffix else ""


def _data_set(name: str, source: str, paths: list[Path], style: str) -> DataSet:
    benchmark = BENCHMARKS.get(name)
    problems: dict[str, Problem] = {}
    for path in paths:
        for where, record in records(path):
            if benchmark:
                try:
                    if not benchmark.counts(record):
                        continue
                except (KeyError, TypeError, ValueError):
                    raise UserError(f"{where}: not a record of {name}; fields: {', '.join(sorted(record))}") from None
                record = {k: v for k, v in record.items() if k not in benchmark.ignores}
            problem = _problem(record, where, str(len(problems) + 1))
            if benchmark:
                problem = replace(problem, prompt=benchmark.prompt(record, problem, style))
            id = f"{name}/{problem.id.removeprefix(name + '/')}"
            if id in problems:
                raise UserError(f"{where}: id {problem.id!r} was used before; make it unique")
            problems[id] = replace(problem, id=id)
    if not problems:
        raise UserError(f"--data {name}: no problem of it in {source}")
    digest = hashlib.sha256()
    for problem in problems.values():
        digest.update(json.dumps(vars(problem)).encode())
    return DataSet(name, list(problems.values()), {str(p): sha256(p) for p in paths}, digest.hexdigest())


def _problem(record: dict[str, Any], where: str, number: str) -> Problem:
    if record.get("domain") == "other":                       # with fields that no layout knows
        return parse_problem(where, {"id": number} | {k: v for k, v in record.items() if v is not None})
    found = row(record, where, number)
    if found.domain not in DOMAINS:
        raise UserError(f"{where}: domain = {found.domain!r}; choose one of {', '.join(DOMAINS)}")
    return Problem(found.id, found.domain, found.prompt, found.answer, found.tests)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
