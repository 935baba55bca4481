"""Reading problems: what a line may hold, and the message for each thing that is wrong."""

import datetime
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo.data.schema import Problem, questions, read_problems
from srpo.errors import UserError

MATH = {"id": "m1", "domain": "math", "prompt": "1+1?", "answer": "2"}
TESTS = {"kind": "stdio", "cases": [{"input": "1", "output": "1"}]}
CODE = {"id": "c1", "domain": "code", "prompt": "Add.", "tests": TESTS}


@pytest.fixture
def data(tmp_path):
    def data(*rows, name="d.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return data


def test_reads_in_order_and_skips_blank_lines(data):
    problems = read_problems([data(CODE, "", MATH), data(MATH | {"id": "m2"}, name="e.jsonl")])
    assert [p.id for p in problems] == ["c1", "m1", "m2"]
    assert problems[0].tests == CODE["tests"] and problems[1].answer == "2" and problems[1].response is None


def test_null_is_no_value(data):
    row = MATH | {"difficulty": None, "pass_rate": None, "response": None, "tests": None}
    assert read_problems([data(row)]) == read_problems([data(MATH)])
    with pytest.raises(UserError, match=r"d\.jsonl:1: field 'answer' is missing"):
        read_problems([data(MATH | {"answer": None})])


def test_worked_solutions_need_a_response_but_no_answer(data):
    row = {"id": "w", "domain": "math", "prompt": "1+1?", "response": "2"}
    assert read_problems([data(row)], need_response=True)[0].response == "2"


@pytest.mark.parametrize(("row", "expected"), [
    ('{"id": "m1",', r"d\.jsonl:2: not valid JSON: .* at column \d+"),
    ("[1]", r"d\.jsonl:2: expected an object, found list"),
    (MATH | {"anwser": "2"}, r"d\.jsonl:2: unknown field 'anwser'; fields: id, domain, prompt, answer, tests"),
    ({k: v for k, v in MATH.items() if k != "prompt"}, r"d\.jsonl:2: field 'prompt' is missing"),
    ({k: v for k, v in MATH.items() if k != "answer"}, r"d\.jsonl:2: field 'answer' is missing"),
    ({k: v for k, v in CODE.items() if k != "tests"}, r"d\.jsonl:2: field 'tests' is missing"),
    (MATH | {"answer": 2}, r"d\.jsonl:2: field 'answer' must be str, found int"),
    (MATH | {"id": 7}, r"d\.jsonl:2: field 'id' must be str, found int"),
    (MATH | {"prompt": ""}, r"d\.jsonl:2: field 'prompt' is empty"),
    (MATH | {"domain": "maths"}, r"d\.jsonl:2: domain = 'maths'; choose one of math, code"),
    (MATH | {"id": "first"}, r"d\.jsonl:2: id 'first' was used before, at .*d\.jsonl:1; make it unique"),
])
def test_bad_line(data, row, expected):
    with pytest.raises(UserError, match=expected):
        read_problems([data(MATH | {"id": "first"}, row)])


OTHER = {"id": "o1", "domain": "other", "prompt": "Sort."}


def test_domain_other_has_fields_of_its_own(data):
    extra = {"words": ["b", "a"], "solution": {"first": "a"}, "source": "me", "extra": 1}
    first, second = read_problems([data(OTHER | extra | {"answer": "a b"}, OTHER | {"id": "o2"})])
    assert first.extra == extra and first.answer == "a b" and second.extra == {}


def test_domain_other_in_parquet(tmp_path):
    rows = [OTHER | {"words": ["b"], "shape": None}, OTHER | {"id": "o2", "words": ["a"], "shape": {"sides": 3}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    assert [p.extra for p in read_problems([tmp_path / "d.parquet"])] == [
        {"words": ["b"]}, {"words": ["a"], "shape": {"sides": 3}}]
    pq.write_table(pa.Table.from_pylist([OTHER | {"day": datetime.date(2020, 1, 1)}]), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"parquet:1: field 'day': .*date is not JSON serializable; write it as text"):
        read_problems([tmp_path / "d.parquet"])


@pytest.mark.parametrize(("row", "expected"), [
    (OTHER | {"answer": 3}, r"d\.jsonl:1: field 'answer' must be str, found int"),
    (OTHER | {"tests": "f"}, r"d\.jsonl:1: field 'tests' must be dict, found str"),
    (OTHER | {"prompt": ""}, r"d\.jsonl:1: field 'prompt' is empty"),
])
def test_what_domain_other_shares_is_checked(data, row, expected):
    with pytest.raises(UserError, match=expected):
        read_problems([data(row)])


def test_missing_response(data):
    with pytest.raises(UserError, match=r"d\.jsonl:1: field 'response' is missing"):
        read_problems([data(MATH)], need_response=True)


def test_id_used_in_two_files(data):
    with pytest.raises(UserError, match=r"e\.jsonl:1: id 'm1' was used before, at .*d\.jsonl:1"):
        read_problems([data(MATH), data(MATH, name="e.jsonl")])


def test_empty_file_is_named_even_after_one_with_problems(data):
    with pytest.raises(UserError, match=r"e\.jsonl: no problems in it"):
        read_problems([data(MATH), data(name="e.jsonl")])


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such data file"):
        read_problems([tmp_path / "none.jsonl"])


def test_directory(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_problems([tmp_path])


def test_not_utf8(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(json.dumps(MATH).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"d\.jsonl:2: not valid UTF-8: .* at byte 9"):
        read_problems([tmp_path / "d.jsonl"])


def test_parquet_reads_as_jsonl_does(data, tmp_path):
    rows = [MATH | {"difficulty": "hard", "pass_rate": 0.25, "source": "s"}, CODE]
    columns = sorted({key for row in rows for key in row})
    table = [{key: json.dumps(row[key]) if key == "tests" and key in row else row.get(key) for key in columns}
             for row in rows]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "d.parquet")
    assert read_problems([tmp_path / "d.parquet"]) == read_problems([data(*rows)])
    first = read_problems([tmp_path / "d.parquet"])[0]
    assert first.difficulty == "hard" and first.pass_rate == 0.25


@pytest.mark.parametrize("value", [1.5, -0.1, "0.5", True])
def test_a_pass_rate_is_a_share(data, value):
    with pytest.raises(UserError, match=r":1: pass_rate = .*; must be a number from 0 to 1"):
        read_problems([data(MATH | {"pass_rate": value})])


@pytest.mark.parametrize(("row", "expected"), [
    (MATH | {"answer": None}, r"d\.parquet:2: field 'answer' is missing"),
    (MATH | {"id": "c1"}, r"d\.parquet:2: id 'c1' was used before, at .*d\.parquet:1"),
    (MATH | {"difficulty": "harsh"}, r"d\.parquet:2: difficulty = 'harsh'; choose one of easy, medium, hard"),
    (CODE | {"id": "c2", "tests": "{"}, r"d\.parquet:2: field 'tests': not valid JSON: .* at column 2"),
])
def test_bad_row_of_parquet(tmp_path, row, expected):
    first = CODE | {"tests": json.dumps(TESTS), "answer": None, "difficulty": None}
    pq.write_table(pa.Table.from_pylist([first, row]), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=expected):
        read_problems([tmp_path / "d.parquet"])


def test_unreadable_parquet(tmp_path):
    with pytest.raises(UserError, match=r"d\.parquet: no such data file"):
        read_problems([tmp_path / "d.parquet"])
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"d\.parquet: not valid Parquet"):
        read_problems([tmp_path / "d.parquet"])
    pq.write_table(pa.Table.from_pylist([MATH]), tmp_path / "d.parquet")
    whole = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + whole[104:])  # a page that was flipped on a disk
    with pytest.raises(UserError, match=r"d\.parquet: cannot be read: .*header") as error:
        read_problems([tmp_path / "d.parquet"])
    assert "\n" not in str(error.value)
    (tmp_path / "e.parquet").mkdir()
    with pytest.raises(UserError, match=r"e\.parquet: cannot be read: .*directory"):
        read_problems([tmp_path / "e.parquet"])


def test_questions_are_told_apart_and_answers_are_not():
    problem = Problem("m1", "math", "1+1?", answer="3")
    assert questions([problem]) == questions([replace(problem, answer="2")])
    assert questions([problem]) != questions([replace(problem, prompt="1+2?")])
    assert questions([problem]) != questions([replace(problem, id="m2")])
