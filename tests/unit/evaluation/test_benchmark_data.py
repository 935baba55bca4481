"""What `--data` names: benchmarks at hand and on the (false) hub, files, and what is none of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.evaluation.benchmarks import BENCHMARKS
from srpo.evaluation.data import read

AIME = {"id": 60, "problem": "Find it.", "solution": "\\boxed{204}", "url": "https://x.org"}
MBPP = [{"task_id": i, "text": f"Add {i}.", "code": f"def add(a):\n    return a + {i}",
         "test_list": [f"assert add({j}) == {i + j}" for j in range(3)], "test_setup_code": "",
         "challenge_test_list": ["assert add(0) == 'no'"]} for i in (10, 11, 510, 511)]
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": 'def one() -> int:\n    """One."""\n', "entry_point": "one",
             "canonical_solution": "    return 1\n", "test": "def check(candidate):\n    assert candidate() == 1\n"}
STDIO = {"question_id": "q", "question_content": "Echo.", "starter_code": "", "metadata": "{}",
         "public_test_cases": '[{"input": "1", "output": "1", "testtype": "stdin"}]'}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path | Exception]:
    """What the hub answers, by repository; `asked` are the patterns."""
    answers: dict[str, Any] = {"asked": []}

    def snapshot_download(repository, repo_type, allow_patterns):
        answers["asked"].append((repository, allow_patterns))
        answer = answers.get(repository, LocalEntryNotFoundError("no network"))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return answers


def one(entry: str, style: str = "boxed", data_dir: Path | None = None) -> list[Problem]:
    (found,) = read([entry], data_dir, style)
    return found.problems


def test_a_benchmark_from_the_hub(hub, tmp_path: Path):
    (tmp_path / "snapshot").mkdir()
    pq.write_table(pa.Table.from_pylist([AIME]), tmp_path / "snapshot/test-00000-of-00001.parquet")
    hub["math-ai/aime24"] = tmp_path / "snapshot"
    (problem,) = one("aime24")
    assert hub["asked"] == [("math-ai/aime24", ["test-*.parquet"])]
    assert problem == Problem("aime24/60", "math", "Find it.\n\nPlease reason step by step, and put your final answer "
                              "within \\boxed{}.", answer="204")
    assert one("aime24", "think_answer")[0].prompt == "Find it."


def test_every_name_has_a_place_on_the_hub(hub):
    for name in BENCHMARKS:
        with pytest.raises(UserError, match=rf"^--data {name}: the hub does not give it: .*no network; "
                                            rf"write it as {name}=FILE$"):
            read([name], None, "boxed")
    assert len({repository for repository, _ in hub["asked"]}) == 7


def test_what_is_at_hand_comes_before_the_hub(hub, tmp_path: Path):
    direct = write(tmp_path / "aime24.jsonl", AIME)
    assert read(["aime24"], tmp_path, "boxed")[0].files.keys() == {str(direct)}
    direct.unlink()
    write(tmp_path / "aime24/train.jsonl", AIME | {"id": 1})
    assert [p.id for p in one("aime24", data_dir=tmp_path)] == ["aime24/1"]
    write(tmp_path / "aime24/test.jsonl", AIME | {"id": 2})
    assert [p.id for p in one("aime24", data_dir=tmp_path)] == ["aime24/2"]
    write(tmp_path / "aime24/AIME24.jsonl", AIME | {"id": 3})
    assert [p.id for p in one("aime24", data_dir=tmp_path)] == ["aime24/3"]
    assert hub["asked"] == []
    with pytest.raises(UserError, match=r"^--data aime25: not in --data-dir .*, and the hub does not give it: "):
        read(["aime25"], tmp_path, "boxed")


def test_mbpp_is_its_test_split_with_all_three_tests_shown(tmp_path: Path):
    problems = one(f"mbpp={write(tmp_path / 'all.jsonl', *MBPP)}")
    assert [p.id for p in problems] == ["mbpp/11", "mbpp/510"]
    assert problems[0].prompt.startswith("You are an expert Python programmer, and here is your task: Add 11. Your ")
    assert problems[0].prompt.count("assert add(") == 3
    assert problems[0].tests["code"].count("assert") == 3  # the challenge test is no part of the benchmark


def test_code_prompts(tmp_path: Path):
    (problem,) = one(f"humaneval={write(tmp_path / 'h.jsonl', HUMANEVAL)}")
    assert problem.id == "humaneval/HumanEval/0" and "self-contained Python script" in problem.prompt
    assert HUMANEVAL["prompt"].strip() in problem.prompt
    (problem,) = one(f"livecodebench={write(tmp_path / 'l.jsonl', STDIO)}")
    assert problem.prompt.startswith("Echo.\n\nRead the inputs from stdin")


def test_any_other_data_are_as_they_are(hub, tmp_path: Path):
    file = write(tmp_path / "my.set.jsonl", {"id": "a", "domain": "math", "prompt": "1+1", "answer": "2"})
    hub["me/Mine"] = tmp_path
    sets = read([str(file), f"other={file}", "hf:me/Mine"], None, "boxed")
    assert [(s.name, s.problems[0].id) for s in sets] == [("my", "my/a"), ("other", "other/a"), ("Mine", "Mine/a")]
    assert sets[0].problems[0].prompt == "1+1"


def test_the_digest_is_of_the_problems(tmp_path: Path):
    def digest(name: str, *rows: dict[str, Any]) -> str:
        return read([f"x={write(tmp_path / name, *rows)}"], None, "boxed")[0].digest

    row = {"id": "a", "domain": "math", "prompt": "1+1", "answer": "2"}
    assert digest("1.jsonl", row) == digest("2.jsonl", {**row, "source": "elsewhere"})
    assert len({digest("1.jsonl", row), digest("3.jsonl", row | {"answer": "3"}),
                digest("4.jsonl", row | {"id": "b"}, row)}) == 3


@pytest.mark.parametrize(("entries", "message"), [
    (["amie24"], r"^--data amie24: no such file .*; benchmarks: aime24, aime25, math500"),
    (["no/such.jsonl"], r"^--data no/such.jsonl: no such file or directory"),
    (["a.jsonl", "b/a.jsonl"], r"^--data b/a.jsonl: there is a data set 'a' already; write it as NAME=b/a.jsonl$"),
    (["twice.jsonl"], r"twice.jsonl:2: id 'a' was used before"),
    (["empty.jsonl"], r"^--data empty: no problem of it in empty.jsonl$"),
    (["mbpp=a.jsonl"], r"a.jsonl:1: not a record of mbpp; fields: answer, domain, id, prompt"),
    (["unanswered.jsonl"], r"problem 'unanswered/a': answer = '': empty; correct or drop it"),
    (["..."], r"^--data ...: gives no name; write it as NAME=...$"),
])
def test_what_cannot_be_evaluated(entries, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    row = {"id": "a", "domain": "math", "prompt": "1+1", "answer": "2"}
    for name, rows in {"a": [row], "b/a": [row], "twice": [row, row], "empty": [],
                       "unanswered": [row | {"answer": ""}]}.items():
        write(Path(f"{name}.jsonl"), *rows)
    with pytest.raises(UserError, match=message):
        read(entries, None, "boxed")


def test_a_data_dir_that_is_none(tmp_path: Path):
    with pytest.raises(UserError, match=r"^--data-dir .*none: no such directory$"):
        read(["aime24"], tmp_path / "none", "boxed")
