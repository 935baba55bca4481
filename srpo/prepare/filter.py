"""One shard of records through everything that looks at one row at a time; runs in a worker process."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from srpo import sandbox
from srpo.errors import UserError
from srpo.prepare import code_rules, duplicates, math_rules, readers
from srpo.prepare.clean import clean
from srpo.prepare.contamination import Benchmarks
from srpo.prepare.files import files, records
from srpo.prepare.rows import Row

RULES = {"math": math_rules.RULES, "code": code_rules.RULES}


def filter_records(chunk: list[tuple[str, str, dict[str, Any]]], benchmarks: tuple[str, ...]) -> list[dict[str, Any]]:
    """A shard's rows as they are stored: the row's fields, and the rule that drops it or what duplicates are found by.

    `chunk` holds (where, name, record). Raises UserError for a record of no known layout, or of domain other.
    """
    stored = []
    for where, name, record in chunk:
        if record.get("domain") == "other":
            raise UserError(f"{where}: domain = 'other': there are no rules for it, and its own fields would be lost; "
                            "name the file in data.train as it is")
        row = clean(readers.row(record, where, name))
        rule, detail = _verdict(row, _benchmarks(benchmarks))
        fields = {**vars(row), "tests": json.dumps(row.tests) if row.tests else None, "rule": rule, "detail": detail}
        if not rule:
            fields |= {"exact": duplicates.exact(row.prompt), "signature": duplicates.signature(row.prompt)}
        stored.append(fields)
    return stored


def _verdict(row: Row, benchmarks: Benchmarks) -> tuple[str, str]:
    """(rule, detail) of the first rule that drops the row; empty ones when it stays."""
    if detail := _missing(row):
        return "missing_field", detail
    if row.domain == "code":
        try:
            sandbox.check(row.tests or {})
        except UserError as e:
            return "unusable_tests", str(e)
    for rule in RULES[row.domain]:
        if rule.drops(row):
            return rule.name, ""
    if found := benchmarks.find(row.prompt):
        return "contaminated", found
    return "", ""


def _missing(row: Row) -> str:
    if row.domain not in RULES:
        return f"domain = {row.domain!r}; choose one of {', '.join(RULES)}"
    needed = ("prompt", "answer" if row.domain == "math" else "tests")
    return next((f"{field} is missing" for field in needed if not getattr(row, field)), "")


@lru_cache(1)
def _benchmarks(sources: tuple[str, ...]) -> Benchmarks:
    """Questions of benchmark files, read like any source, cleaned like any row."""
    questions = []
    for source in sources:
        for path in files(source):
            for where, record in records(path):
                questions.append((where, clean(readers.row(record, where, "")).prompt))
    return Benchmarks(questions)
