"""The command from end to end on small files: what stays, what goes and why, what a kill leaves, what is an error."""

from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from srpo import cli
from srpo.data.schema import read_problems
from srpo.errors import UserError
from srpo.files import writing
from srpo.prepare import pipeline
from srpo.prepare.store import Store
from srpo.sandbox import isolation

QUIET = Console(quiet=True)
ADD = "def add(a, b):\n    return a + b\n"


def math(n: int, **fields: Any) -> dict[str, Any]:
    names = ("apples", "pears", "plums", "cherries", "quinces", "figs", "limes")
    return {"question": f"Ann picks {n} {names[n % 7]} and loses two. How many {names[n % 7]} has she now?",
            "answer": f"She has {n}-2={n - 2}.\n#### {n - 2}", **fields}


def mbpp(**fields: Any) -> dict[str, Any]:
    return {"task_id": 1, "text": "Add two numbers.", "code": ADD, "test_list": ["assert add(1, 2) == 3"], **fields}


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def rejected(out: Path) -> dict[str, str]:
    return {r["where"].rsplit("/", 1)[1]: r["rule"] for r in pq.read_table(out / "rejected.parquet").to_pylist()}


def test_from_raw_files_to_a_training_set(tmp_path: Path):
    maths = lines(tmp_path / "m.jsonl", math(10), math(11),
                  math(10),                                                     # 3 an exact duplicate
                  math(12, question="In the figure, how long is AB?"),          # 4
                  {"question": "What is $2+2$?", "answer": ""},                 # 5
                  math(13, question="How many letters has the benchmark's own and rather long question, which asks "
                                    "for the letters of itself?"),              # 6
                  {"problem": "What is $3^2$?", "answer": "9", "solution": "It is $\\boxed{6}$."},   # 7
                  {"problem": "What is $7^2$?", "answer": "49"},
                  {"problem": "What is $7^2$?", "answer": "48"})                # 8 and 9 contradict each other
    code = lines(tmp_path / "c.jsonl", mbpp(),
                 mbpp(text="Subtract.", task_id=2, test_list=["assert add(5, 2) == 3"]),
                 mbpp(text="Do nothing.", task_id=3, test_list=["assert add(1, 2) or True"]),
                 mbpp(text="Pick.", task_id=4, code=f"import random\n{ADD}"))
    bench = lines(tmp_path / "b.jsonl", {"problem": "How many letters has the benchmark's own and rather long "
                                                    "question, which asks for the letters of itself?", "answer": "1"})
    out = tmp_path / "out"
    summary = pipeline.prepare([maths, code], out, benchmarks=[bench], console=QUIET)
    assert rejected(out) == {
        "m.jsonl:3": "exact_duplicate", "m.jsonl:4": "needs_image", "m.jsonl:5": "missing_field",
        "m.jsonl:6": "contaminated", "m.jsonl:7": "solution_disagrees", "m.jsonl:8": "ambiguous",
        "m.jsonl:9": "ambiguous", "c.jsonl:2": "solution_fails", "c.jsonl:3": "vacuous_tests",
        "c.jsonl:4": "non_determinism"}
    problems = read_problems([out / "train.parquet"])
    assert [p.answer for p in problems if p.domain == "math"] == ["8", "9"]
    assert [p.tests for p in problems if p.domain == "code"] == [
        {"kind": "assert", "entry_point": "add", "code": "assert add(1, 2) == 3"}]
    assert summary["mbpp"] == {"rows": 4, "kept": 1, "solution_fails": 1, "vacuous_tests": 1, "non_determinism": 1}
    assert json.loads((out / "summary.json").read_text()) == summary


def test_a_source_is_printed_as_the_data_name_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {"data_source": "s[/x]\x1b[2J", "prompt": [{"role": "user", "content": "What is $3^2$?"}],
           "reward_model": {"ground_truth": "9"}}
    pipeline.prepare([lines(tmp_path / "v.jsonl", row)], tmp_path / "out", verify=False)
    assert "s[/x]␛[2J" in capsys.readouterr().err


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = lines(tmp_path / "m.jsonl", *map(math, range(10, 25))), tmp_path / "out"
    monkeypatch.setattr(pipeline, "SHARD", 5)
    put = Store.put_rows
    before: list[str] = []

    def killed_at_the_third(self, name, rows):
        if len(before) == 2:
            raise KeyboardInterrupt
        before.append(name)
        put(self, name, rows)

    monkeypatch.setattr(Store, "put_rows", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare([source], out, console=QUIET)
    done: list[str] = []
    monkeypatch.setattr(Store, "put_rows", lambda self, name, rows: (done.append(name), put(self, name, rows)))
    pipeline.prepare([source], out, console=QUIET)
    assert sorted(before + done) == [f"filter-000-00000{i}" for i in range(3)] and len(done) == 1
    assert len(read_problems([out / "train.parquet"])) == 15

    done.clear()
    lines(tmp_path / "m.jsonl", *map(math, range(10, 26)))                      # another input: from the beginning
    pipeline.prepare([source], out, console=QUIET)
    assert len(done) == 4


def test_a_source_that_becomes_a_benchmark(tmp_path: Path):
    first, second = (lines(tmp_path / name, math(10), math(11)) for name in ("a.jsonl", "b.jsonl"))
    out = tmp_path / "out"
    pipeline.prepare([first, second], out, verify=False, console=QUIET)
    with pytest.raises(UserError, match="no row is left of 2; what dropped most: contaminated 2"):
        pipeline.prepare([first], out, benchmarks=[second], verify=False, console=QUIET)


def test_workers_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "SHARD", 3)
    source = lines(tmp_path / "m.jsonl", *(math(10 + i % 8) for i in range(20)))
    tables = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        pipeline.prepare([source], out, workers=workers, console=QUIET)
        tables.append([pq.read_table(out / f"{name}.parquet") for name in ("train", "rejected")])
    assert tables[0] == tables[1] and tables[0][0].num_rows == 8


@pytest.mark.parametrize(("bad", "expected"), [
    ('{"question": ', r"m\.jsonl:2: not valid JSON"),
    ("[1]", r"m\.jsonl:2: expected an object, found list"),
    ({"id": "o", "domain": "other", "prompt": "Sort."}, r"m\.jsonl:2: domain = 'other': there are no rules for it, .*; "
                                                        r"name the file in data.train as it is"),
    ({"text": "Add."}, r"m\.jsonl:2: its fields \(text\) are of no known layout; rename"),
    ({"question": 7.5, "answer": "1"}, r"m\.jsonl:2: read as gsm8k: field 'question' must be text, found float"),
    ({"text": "Add.", "code": ADD, "test_list": None}, r"m\.jsonl:2: read as mbpp: a field is not as that layout"),
    ({"question": "?", "input_output": "{"}, r"m\.jsonl:2: read as apps: not valid JSON in '\{'"),
    ({"question": "?", "input_output": "[" * 100_000}, r"m\.jsonl:2: read as apps: .*: RecursionError: maximum"),
    ({"question": "?", "input_output": {"inputs": ["1"], "outputs": []}}, "apps: tests have 1 inputs and 0 outputs"),
    ({"question": "?", "input_output": {"inputs": [], "outputs": []}, "solutions": [1]}, "must be text, found int"),
    ({"text": "Add.", "code": ADD, "test_list": [1]}, r"m\.jsonl:2: read as mbpp: field 'test_list' must be a list of"),
    ({"question_content": "?", "public_test_cases": "[]", "private_test_cases": "!!"}, "private_test_cases: "),
    ({"question_content": "?", "metadata": '{"func_name": "f"}', "public_test_cases": [{"input": "x", "output": "1"}]},
     r"m\.jsonl:2: read as livecodebench: not valid JSON in 'x'"),
    ('{"question": ' + "[" * 100_000, r"m\.jsonl:2: JSON that cannot be read: maximum recursion"),
    ('{"question": "?", "answer": ' + "9" * 5000 + "}", r"m\.jsonl:2: JSON that cannot be read: Exceeds the limit"),
])
def test_bad_row_is_named(tmp_path: Path, bad: Any, expected: str):
    with pytest.raises(UserError, match=expected):
        pipeline.prepare([lines(tmp_path / "m.jsonl", math(10), bad)], tmp_path / "out", console=QUIET)


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.jsonl.gz", b"hello", "not a valid gzip file: Not a gzipped file"),
    ("a.jsonl.gz", gzip.compress(b'{"question": "?", "answer": "1"}\n' * 500)[:-9], "not a valid gzip file: Compr"),
    ("a.parquet", b"PAR1xxxx", "not a valid Parquet file: "), ("a.arrow", b"ARROW1", "not a valid Arrow file: "),
    ("a.jsonl", b"\n", "no rows in it"),
])
def test_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes, expected: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: {expected}"):
        pipeline.prepare([str(tmp_path / name)], tmp_path / "out", console=QUIET)


def test_a_folder_that_holds_out_is_read_without_it(tmp_path: Path):
    lines(tmp_path / "m.jsonl", math(10), math(11))
    for _ in range(2):
        pipeline.prepare([str(tmp_path)], tmp_path / "out", console=QUIET)
    assert len(read_problems([tmp_path / "out/train.parquet"])) == 2


def test_byte_order_mark_line_ends_and_half_characters(tmp_path: Path):
    rows = [math(10), math(11, id="\udc00"), {**mbpp(), "code": "\ufeff" + ADD.replace("\n", "\r\n")}]
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(r) + "\r\n" for r in rows).encode())
    pipeline.prepare([str(path)], tmp_path / "out", console=QUIET)
    assert pq.read_table(tmp_path / "out/train.parquet")["solution"].to_pylist()[2] == ADD


def test_nothing_left(tmp_path: Path):
    source = lines(tmp_path / "m.jsonl", {"question": "Prove that $x=x$.", "answer": "proof"})
    with pytest.raises(UserError, match="no row is left of 1; what dropped most: proof 1"):
        pipeline.prepare([source], tmp_path / "out", console=QUIET)


def test_same_ids_become_unique(tmp_path: Path):
    a = lines(tmp_path / "a.jsonl", {"id": "x", "problem": "What is $1+1$?", "answer": "2"})
    b = lines(tmp_path / "b.jsonl", {"id": "x", "problem": "What is $1+2$?", "answer": "3"},
              {"id": "x-2", "problem": "What is $1+3$?", "answer": "4"})
    pipeline.prepare([a, b], tmp_path / "out", console=QUIET)
    assert [p.id for p in read_problems([tmp_path / "out/train.parquet"])] == ["x", "x-3", "x-2"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(math(n)) + "\n" for n in range(10, 13)).encode()))
    assert cli.command(["prepare", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "3/3" in (shown := capsys.readouterr().err) and "kept" in shown
    assert len(read_problems([tmp_path / "out/train.parquet"])) == 3


@pytest.mark.parametrize(("options", "expected"), [
    (["--model", "m", "--easy", "0.2"], "thresholds easy = 0.2, hard = 0.25: must be 0 <= hard < easy <= 1"),
    (["--model", "m", "--samples", "0"], "samples = 0, max_tokens = 2048: must be at least 1"),
    (["--model", "m"], "--model m: no model there, config.json is missing"),
    (["--workers", "0"], "workers = 0: must be at least 1"),
    (["--out", "file"], "file/work: cannot be written: Not a directory"),
    (["--out", "."], "m.jsonl: is in ., which would be overwritten; choose another --out"),
])
def test_unusable_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                          options: list[str], expected: str):
    monkeypatch.chdir(tmp_path)
    lines(Path("m.jsonl"), math(10))
    Path("file").touch()
    assert cli.command(["prepare", "m.jsonl", "--out", "out", *options]) == 2
    assert capsys.readouterr().err == f"srpo: error: {expected}\n"


def test_a_full_disk_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="a.json: cannot be written: No space left"), writing(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_weak_sandbox_is_allowed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = lines(tmp_path / "m.jsonl", mbpp()), str(tmp_path / "out")
    monkeypatch.setattr(isolation, "_unsafe", False)
    monkeypatch.setattr(isolation, "probe", lambda: ("unsafe", {"namespaces": "none here"}))
    assert cli.command(["prepare", source, "--out", out]) == 2
    assert cli.command(["prepare", source, "--out", out, "--allow-unsafe-sandbox"]) == 0
