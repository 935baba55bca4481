"""`srpo prepare` over GSM8K, MBPP, HumanEval and MATH: what docs/data.md says of them.

    SRPO_DATA=FOLDER pytest tests/public_data/test_prepare.py

FOLDER holds gsm8k/{train,test}.jsonl, mbpp/mbpp.jsonl, humaneval/HumanEval.jsonl.gz, math/math500.jsonl and
math/mirror_{train,validation}.jsonl.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from srpo.data.schema import read_problems
from srpo.prepare.clean import clean
from srpo.prepare.contamination import Benchmarks
from srpo.prepare.files import records
from srpo.prepare.pipeline import prepare
from srpo.prepare.readers import row
from srpo.rewards.compose import check_problems

DATA = Path(os.environ.get("SRPO_DATA", ""))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    sources = ("gsm8k/train.jsonl", "mbpp/mbpp.jsonl", "humaneval/HumanEval.jsonl.gz", "math/mirror_train.jsonl")
    benchmarks = ("math/math500.jsonl", "gsm8k/test.jsonl")
    prepare([str(DATA / s) for s in sources], folder, benchmarks=[str(DATA / b) for b in benchmarks], workers=2,
            console=Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def rejected(out: Path) -> dict[str, set[Any]]:
    """Ids by rule."""
    found: dict[str, set[Any]] = {}
    for r in pq.read_table(out / "rejected.parquet").to_pylist():
        found.setdefault(r["rule"], set()).add(r["id"])
    return found


def test_what_stays_can_be_trained_on(out: Path):
    problems = read_problems([out / "train.parquet"])
    check_problems(problems)
    assert sum(p.id.startswith("HumanEval/") for p in problems) == 164
    assert len(problems) == 16_111 - sum(1 for _ in pq.read_table(out / "rejected.parquet").to_pylist())


def test_mbpp(rejected: dict[str, set[Any]]):
    ours = {rule: {i for i in ids if i.startswith("mbpp/")} for rule, ids in rejected.items()}
    assert {rule: ids for rule, ids in ours.items() if ids} == {
        "environment": {"mbpp/596"}, "solution_fails": {"mbpp/367", "mbpp/601", "mbpp/927"},
        "exact_duplicate": {"mbpp/347"}, "near_duplicate": {f"mbpp/{n}" for n in (602, 649, 699, 779, 922, 928)}}


def test_gsm8k(rejected: dict[str, set[Any]]):
    """Nothing but a pair that differs in a name: "figure out", "improve" and "table" are no traps."""
    ours = {rule: {i for i in ids if i.startswith("gsm8k/")} for rule, ids in rejected.items()}
    assert {rule: ids for rule, ids in ours.items() if ids} == {"near_duplicate": {"gsm8k/train/6691"}}


def test_math(rejected: dict[str, set[Any]]):
    counts = {rule: sum(i.startswith("test/") for i in ids) for rule, ids in rejected.items()}
    assert {rule: n for rule, n in counts.items() if n} == {
        "needs_image": 710, "choice_by_value": 74, "contaminated": 16, "near_duplicate": 4, "exact_duplicate": 5,
        "missing_field": 2}


def test_every_question_of_a_benchmark_is_found_where_it_is():
    def questions(name: str) -> list[str]:
        return [clean(row(r, where, "")).prompt for where, r in records(DATA / "math" / name)]

    benchmark = questions("math500.jsonl")
    against = Benchmarks((str(i), text) for i, text in enumerate(benchmark))
    found = {against.find(text) for text in questions("mirror_validation.jsonl")} - {None}
    assert len(found) == len(benchmark) == 500
