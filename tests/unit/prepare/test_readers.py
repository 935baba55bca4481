"""Every layout that is read, and every kind of file."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo.errors import UserError
from srpo.prepare import files, readers
from srpo.rewards.code import extract
from srpo.sandbox import check, judge

CASES = json.dumps([{"input": "[1, 2]\n3", "output": "4", "testtype": "functional"}])


def read(record: dict[str, Any]) -> Any:
    return readers.row(record, "f:1", "f/0")


@pytest.mark.parametrize(("record", "prompt", "answer"), [
    ({"question": "Q?", "answer": "so <<1+1=2>>2\n#### 1,002"}, "Q?", "1,002"),
    ({"problem": "Q?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": "1"}, "Q?", "\\frac{1}{2}"),
    ({"problem": "Q?", "answer": "5", "solution": "$\\boxed{6}$"}, "Q?", "5"),
    ({"prompt": "Q?", "answer": 5}, "Q?", "5"),
    ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q?"}], "solution": "42"}, "Q?", "42"),
    ({"data_source": "d", "prompt": [{"role": "user", "content": "Q?"}], "ability": "math",
      "reward_model": {"style": "rule", "ground_truth": "72"}, "extra_info": {"split": "train", "index": 3}},
     "Q?", "72"),
    ({"id": "a", "domain": "math", "prompt": "Q?", "answer": "1"}, "Q?", "1"),
])
def test_maths(record: dict[str, Any], prompt: str, answer: str):
    row = read(record)
    assert (row.domain, row.prompt, row.answer, row.where) == ("math", prompt, answer, "f:1") and row.id


def test_verl_names_its_rows():
    row = read({"data_source": "openai/gsm8k", "prompt": "Q?", "reward_model": {"ground_truth": "72"},
                "extra_info": {"split": "train", "index": 3, "answer": "x #### 71"}})
    assert (row.id, row.source) == ("openai/gsm8k/train/3", "openai/gsm8k") and readers.final(row.solution) == "71"


def passes(row: Any) -> bool:
    check(row.tests)
    verdict = judge(row.solution, row.tests)
    return verdict.passed == verdict.total


def test_mbpp_without_tests_that_can_be_run():
    record = {"task_id": 3, "text": "Add.", "code": "def add(a, b):\n    return a + b"}
    for tests in ([], ["assert 1 == 1"], ["assert add(1, 2) == 3\0"]):
        row = read(record | {"test_list": tests})
        assert (row.prompt, row.tests) == ("Add.", None)


def test_mbpp_shows_its_first_test_and_hides_the_others():
    row = read({"task_id": 3, "text": "Add.", "code": "def add(a, b):\r\n    return a + b",
                "test_setup_code": "one = 1",
                "test_list": ["assert add(1, 2) == 3", "assert set([add(one, 3)]) == {4}"],
                "challenge_test_list": []})
    assert passes(row) and row.id == "mbpp/3"
    assert "`add`" in row.prompt and "add(1, 2) == 3" in row.prompt and "add(one, 3)" not in row.prompt


def test_humaneval_tests_may_use_what_the_prompt_defines():
    row = read({"task_id": "HumanEval/1", "entry_point": "f", "canonical_solution": "    return g(x) + 1\n",
                "prompt": "def g(x):\n    return 2 * x\n\n\ndef f(x):\n    \"\"\"Twice and one.\"\"\"\n",
                "test": "def check(candidate):\n    assert candidate(3) == g(3) + 1\n"})
    assert passes(row) and extract(row.prompt).endswith('"""Twice and one."""')


def test_apps():
    stdio = read({"problem_id": 1, "question": "Double it.", "starter_code": "",
                  "solutions": '["print(2 * int(input()))"]',
                  "input_output": json.dumps({"inputs": ["2\n", ["3", ""]], "outputs": ["4\n", ["6", ""]]})})
    assert passes(stdio) and stdio.prompt == "Double it."
    starter = "class Solution:\n    def twice(self, n: int) -> List[int]:\n        "
    method = read({"question": "Double it.", "starter_code": starter,
                   "solutions": json.dumps([f"{starter}return [2 * n]"]),
                  "input_output": json.dumps({"fn_name": "twice", "inputs": [[2]], "outputs": [[[4]]]})})
    assert passes(method) and "def twice(n: int) -> List[int]:" in method.prompt and "Solution" not in method.prompt


def test_livecodebench():
    private = base64.b64encode(zlib.compress(pickle.dumps(CASES))).decode()
    row = read({"question_id": "q1", "question_content": "Sum.", "public_test_cases": CASES,
                "private_test_cases": private,
                "starter_code": "class Solution:\n    def total(self, a: List[int], b: int) -> int:\n        ",
                "metadata": '{"func_name": "total"}'})
    assert row.tests == {"kind": "function", "entry_point": "total",
                         "cases": [{"args": [[1, 2], 3], "expected": 4}] * 2}
    assert "def total(a: List[int], b: int) -> int:" in row.prompt


def test_a_pickle_of_anything_but_text_is_refused():
    bomb = base64.b64encode(zlib.compress(pickle.dumps(os.getcwd))).decode()
    with pytest.raises(UserError, match=r"f:1: read as livecodebench: private_test_cases: refuses to load posix\.get"):
        read({"question_content": "Q", "public_test_cases": "[]", "private_test_cases": bomb})


@pytest.mark.parametrize(("tests", "kind"), [
    ('{"inputs": ["1"], "outputs": ["2"]}', "stdio"), ([{"input": "1", "output": "2"}], "stdio"),
    ({"kind": "assert", "entry_point": "f", "code": "assert f(1)"}, "assert")])
def test_tests_of_own_and_verl_rows(tests: Any, kind: str):
    assert read({"id": "a", "domain": "code", "prompt": "P", "tests": tests}).tests["kind"] == kind
    truth = tests if isinstance(tests, str) else json.dumps(tests)
    row = read({"data_source": "d", "prompt": "P", "ability": "code", "reward_model": {"ground_truth": truth}})
    assert row.domain == "code" and row.tests["kind"] == kind


ROWS = [{"question": "Q?", "answer": "1"}, {"question": "R?", "answer": "2"}]


def test_files_of_every_kind_say_the_same(tmp_path: Path):
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for name in ("a.parquet", "a.arrow", "a.json", "a.jsonl"):
        path, = files.files(str(tmp_path / name))
        assert list(files.records(path)) == [(f"{path}:{i}", r) for i, r in enumerate(ROWS, 1)]
        assert files.count(path) == 2


def test_a_folder_gives_its_tables_before_its_texts(tmp_path: Path):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/b.jsonl").write_text("")
    (tmp_path / "data/a.jsonl").write_text("")
    assert [p.name for p in files.files(str(tmp_path))] == ["a.jsonl", "b.jsonl"]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data/a.parquet")
    assert [p.name for p in files.files(str(tmp_path))] == ["a.parquet"]


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("none", None, "no such file or directory; a data set of the hub"),
    ("a.txt", b"", r"a\.txt: unknown kind of file; known: \.parquet"),
    ("a.parquet", b"PAR", r"a\.parquet: not a valid Parquet file"),
    ("a.arrow", b"ARROWxxxxxxxxx", r"a\.arrow: not a valid Arrow file"),
    ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: not a valid gzip file"),
    ("a.json", b"{}", r"a\.json: expected a list of objects, found dict"),
    ("a.jsonl", b'{"a": "\xff"}', r"a\.jsonl:1: not valid UTF-8"),
])
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | None, expected: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        for path in files.files(str(tmp_path / name)):
            list(files.records(path))


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def snapshot_download(repository: str, **settings: Any) -> str:
        asked.append((repository, settings))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (tmp_path / "a.jsonl").write_text("")
    for source in ("hf:openai/gsm8k", "hf:openai/gsm8k:main/train-*.parquet"):
        assert files.files(source) == [tmp_path / "a.jsonl"]
    assert [(name, settings["repo_type"]) for name, settings in asked] == [("openai/gsm8k", "dataset")] * 2
    assert [settings["allow_patterns"] for _, settings in asked] == [
        [f"*{suffix}" for suffix in files.SUFFIXES], ["main/train-*.parquet"]]


def test_a_name_that_the_hub_cannot_have():
    with pytest.raises(UserError, match=r"hf:a/b/c: cannot be downloaded: "):
        files.files("hf:a/b/c")
