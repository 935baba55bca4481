"""`srpo eval` from its arguments to its files; the model alone is replaced, by one that says what it is told to."""

from __future__ import annotations

import json
import random
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from srpo.commands import eval as command_line
from srpo.config import Config, answer_style, stop_strings
from srpo.data import toy
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.evaluation import command
from srpo.evaluation.command import evaluate
from srpo.evaluation.report import Scored, figures
from srpo.evaluation.settings import settle

Answer = Callable[[Problem, int], str]
SUMS = [{"id": f"m{i}", "domain": "math", "prompt": f"{i}+1", "answer": str(i + 1)} for i in range(5)]
PLAIN = ("--template", "plain", "--style", "boxed", "--max-tokens", "99")
HALF = {"id": "h", "domain": "math", "prompt": "1/2", "answer": "1/2"}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "model"
    toy.write_model(folder, seed=1)
    return folder


@pytest.fixture(autouse=True)
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process, and none of it left."""
    monkeypatch.setattr(command, "join", lambda: dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


class Model:
    """`asked`: problems that it has been asked. It dies before the response number `dies`. `in_turn`: as on CPU, where
    a batch waits for the one before."""

    def __init__(self, answer: Answer, dies: int | None = None, in_turn: bool = True):
        self.answer, self.dies, self.in_turn, self.asked, self.given = answer, dies, in_turn, [], {}

    def start(self, *args: Any, **settings: Any) -> Model:
        self.given = {"args": args, **settings}
        return self

    def generate(self, batches: list[list[Problem]], samples: int, temperature: float, *, top_p: float, seed: int
                 ) -> Iterator[dict[tuple[str, int], SimpleNamespace]]:
        for problems in batches if self.in_turn else [[p for batch in batches for p in batch]]:
            order = [(p, j) for p in problems for j in range(samples)]
            random.Random(len(self.asked)).shuffle(order)  # they finish in any order
            self.asked += [p.id for p in problems]
            for p, j in order:
                if self.dies is not None:
                    if self.dies == 0:
                        raise KeyboardInterrupt
                    self.dies -= 1
                text = self.answer(p, j)
                yield {(p.id, j): SimpleNamespace(text=text, tokens=len(text), truncated=text.endswith("..."))}


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    def run(says: Answer | Model, *options: str, rows: list[dict[str, Any]] | None = None, target: Path = model,
            data: str = "", out: str = "out") -> dict[str, Any]:
        says = says if isinstance(says, Model) else Model(says)
        monkeypatch.setitem(sys.modules, "srpo.rollout.standalone", SimpleNamespace(StandaloneEngine=says.start))
        file = tmp_path / "set.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows or SUMS))
        if dist.is_initialized():  # of an earlier call that sampled
            dist.destroy_process_group()
        given = () if target != model else PLAIN  # the last one counts
        return evaluate(arguments(target, "--data", file, "--out", tmp_path / out, "--workers", 1, *given, *options))

    return run


def arguments(*words: object) -> Namespace:
    parser = ArgumentParser()
    command_line.add(parser.add_subparsers())
    return parser.parse_args(["eval", *map(str, words)])


def boxed(*texts: str) -> Answer:
    return lambda problem, j: f"\\boxed{{{texts[j]}}}"


def samples(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "samples").to_pylist()


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_and_files(run, tmp_path: Path):
    texts = ["\\boxed{0.5}", "hm \\boxed{1/2}", "\\boxed{3}", "no idea..."]
    summary = run(lambda problem, j: texts[j], "--samples", "4", rows=[HALF])
    figures = summary["data"]["set"]
    assert {k: v["mean"] for k, v in figures.items() if "@" in k} == pytest.approx({
        "avg@4": 1 / 2, "pass@1": 1 / 2, "pass@2": 5 / 6, "pass@4": 1.0,
        # of the six pairs: right with right, right with wrong (a draw) twice, right with silence twice, wrong alone
        "majority@1": 1 / 2, "majority@2": (1 + 2 * 0.5 + 2 + 0) / 6, "majority@4": 1.0})
    assert figures["truncated"] == figures["no_answer"] == 0.25 and figures["failed"] == 0
    assert figures["tokens"] == {"mean": 11.0, "median": 10.5, "max": 14, "correct": 12.5, "wrong": 9.5}
    assert summary["domains"] == {"math": figures}
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    rows = samples(tmp_path / "out")
    assert [(r["sample"], r["extracted"], r["answer_group"], r["correct"], r["truncated"]) for r in rows] == [
        (0, "0.5", 0, 1.0, False), (1, "1/2", 0, 1.0, False), (2, "3", 1, 0.0, False), (3, None, None, 0.0, True)]
    assert [r["reason"] for r in rows] == ["correct", "correct", "wrong answer", "no single final answer"]
    assert [r["response"] for r in rows] == texts
    (problem,) = pq.read_table(tmp_path / "out/problems.parquet").to_pylist()
    assert problem["id"] == "h" and problem["correct"] == problem["answers"] == 2 and problem["truncated"] == 1
    assert problem["reference"] == "1/2" and problem["majority@4"] == 1.0


def test_a_lost_grade_is_no_missing_answer():
    samples = {"answer_group": [0, None, None, 0], "correct": [1.0, 0.0, 0.0, 1.0],
               "failed": [False, True, False, False], "tokens": [5] * 4, "truncated": [False] * 4}
    found = figures([Scored("set", Problem("set/m", "math", "1+1", "2"), samples, {"avg@4": 0.5})], 1)
    assert (found["no_answer"], found["failed"]) == (0.25, 1)


def test_what_was_done_is_recorded(run, model: Path):
    summary = run(boxed("1"), "--samples", "1", "--temperature", "0.6", "--top-p", "0.9", "--seed", "7",
                  "--max-tokens", "40")
    assert summary["settings"] == {"samples": 1, "temperature": 0.6, "top_p": 0.9, "max_tokens": 40, "seed": 7,
                                   "template": "plain", "style": "boxed", "stop": [], "chunk": 64,
                                   "tensor": 1, "dtype": "auto"}
    assert summary["model"]["target"] == str(model) and len(summary["model"]["sha256"]) == 64
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(summary["model"]["files"])
    assert {"vllm", "torch", "transformers", "srpo", "python", "device"} == set(summary["versions"])
    assert summary["inputs"]["set"]["problems"] == 5 and len(summary["inputs"]["set"]["sha256"]) == 64


def test_reference_programs_score_one_and_empty_ones_nothing(run):
    problems = {f"c{i}": p for i, p in enumerate(toy.all_functions()[::120])}
    rows = [{"id": i, "domain": "code", "prompt": p["prompt"], "tests": p["tests"]} for i, p in problems.items()]

    def reference(problem: Problem, j: int) -> str:
        first, a, second, b = problems[problem.id.split("/")[1]]["steps"]
        return f"</think><answer>\n```python\ndef f(x):\n    return (x{first}{a}){second}{b}\n```\n</answer>"

    options = ("--samples", "2", "--style", "think_answer")
    right = run(reference, *options, rows=rows)["data"]["set"]
    assert right["avg@2"] == right["pass@2"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert "majority@2" not in right and right["no_answer"] is None
    for i, empty in enumerate(("", "</think><answer></answer>", "</think>```python\n\n```")):
        wrong = run(lambda problem, j, text=empty: text, *options, rows=rows, out=f"empty{i}")["data"]["set"]
        assert wrong["avg@2"] == wrong["pass@2"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_domains_are_told_apart(run):
    rows = [*SUMS[:2], {"id": "c", "domain": "code", "prompt": "f", "tests": {
        "kind": "function", "entry_point": "f", "cases": [{"args": [1], "expected": 2}]}}]
    summary = run(lambda p, j: "```python\ndef f(x):\n    return 2\n```" if p.domain == "code" else "\\boxed{1}",
                  "--samples", "1", rows=rows)
    assert {d: f["avg@1"]["mean"] for d, f in summary["domains"].items()} == {"math": 0.5, "code": 1.0}
    assert summary["data"]["set"]["avg@1"]["mean"] == pytest.approx(2 / 3)
    assert summary["data"]["set"]["majority@1"]["mean"] == 0.5


# -- going on ---------------------------------------------------------------------------------------------------------


def by_length(problem: Problem, j: int) -> str:
    return f"\\boxed{{{len(problem.prompt) + j}}}"


def test_a_kill_loses_a_chunk_at_most(run, tmp_path: Path):
    options = ("--samples", "2", "--chunk", "2")
    whole = run(by_length, *options, out="whole")
    with pytest.raises(KeyboardInterrupt):
        run(Model(by_length, dies=7), *options)
    (tmp_path / "out/samples/other-000009.part").write_text("torn")
    again = Model(by_length)
    assert run(again, *options) == whole
    assert again.asked == ["set/m2", "set/m3", "set/m4"] and not list((tmp_path / "out").rglob("*.part"))
    assert samples(tmp_path / "out") == samples(tmp_path / "whole")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*.parquet")} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").rglob("*.parquet")}

    third = Model(by_length)
    other = run(third, *options, "-k", "2")  # another k asks the model nothing
    assert third.asked == [] and "pass@2" in other["data"]["set"] and "pass@1" not in other["data"]["set"]


def test_chunks_that_overlap_are_written_as_they_are_completed(run, tmp_path: Path):
    """Also when the run is killed: those that were whole by then stay."""
    options = ("--samples", "2", "--chunk", "1")
    whole = run(by_length, *options, out="whole")
    with pytest.raises(KeyboardInterrupt):
        run(Model(by_length, dies=8, in_turn=False), *options)
    done = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.parquet")}
    assert 0 < len(done) < 5
    again = Model(by_length, in_turn=False)
    assert run(again, *options) == whole and len(again.asked) == 5 - len(done)
    files = {f.name: f for f in (tmp_path / "out" / "samples").iterdir()}
    assert all(files[name].stat().st_mtime_ns == written for name, written in done.items())
    assert {name: f.read_bytes() for name, f in files.items()} == {
        f.name: f.read_bytes() for f in (tmp_path / "whole" / "samples").iterdir()}


@pytest.mark.parametrize(("changed", "message"), [
    (("--temperature", "0.5"), r"out: was begun with temperature = 1.0, now temperature = 0.5; choose another --out"),
    (("--samples", "3"), "was begun with samples = 2, now samples = 3"),  # and not the chunks, which follow from it
    (("--seed", "2"), "was begun with seed = 1, now seed = 2"),
    (("--style", "think_answer"), "was begun with style = boxed, now style = think_answer"),
])
def test_other_settings_are_another_evaluation(changed, message, run):
    run(boxed("1", "1"), "--samples", "2")
    with pytest.raises(UserError, match=message):
        run(boxed("1", "1", "1"), "--samples", "2", *changed)


def test_other_problems_or_weights_are_another_evaluation(run, tmp_path: Path, model: Path):
    run(boxed("1"), "--samples", "1")
    with pytest.raises(UserError, match=r"was begun with data set = \w{12}, now data set = \w{12};"):
        run(boxed("1"), "--samples", "1", rows=[HALF])
    toy.write_model(tmp_path / "other", seed=2)
    with pytest.raises(UserError, match=r"was begun with model = \w{12}, now model = \w{12};"):
        run(boxed("1"), "--samples", "1", *PLAIN, target=tmp_path / "other")


def test_a_damaged_file_is_named_and_can_be_made_again(run, tmp_path: Path):
    whole = run(boxed("1"), "--samples", "1", "--chunk", "3")
    file = tmp_path / "out/samples/set-000001.parquet"
    file.write_bytes(b"")  # a power cut
    with pytest.raises(UserError, match="set-000001.parquet: cannot be read: .*; delete it and repeat the command"):
        run(boxed("1"), "--samples", "1", "--chunk", "3")
    file.unlink()
    again = Model(boxed("1"))
    assert run(again, "--samples", "1", "--chunk", "3") == whole and again.asked == ["set/m3", "set/m4"]


def test_a_kill_before_anything_was_written_whole(run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.part").write_text("{")
    assert run(boxed("1"), "--samples", "1")["data"]["set"]["problems"] == 5


def test_a_folder_of_something_else_is_left_alone(run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"out: holds thesis.tex and no settings.json; give --out a new directory"):
        run(boxed("1"))


# -- runs and bad input -----------------------------------------------------------------------------------------------


def make_run(folder: Path, model: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"run: {folder}\nmodel: {{path: {model}, dtype: float32}}\ndata: {{train: [x.jsonl], template: plain}}\n"
        "rollout: {max_response_tokens: 50}\nreward: {style: think_answer}\neval: {samples: 3, temperature: 0.7}\n"
        "stages: [{name: a, domains: [math], until: steps, steps: 1}]\n")
    return folder


def test_a_finished_run_brings_its_settings(run, tmp_path: Path, model: Path):
    folder = make_run(tmp_path / "run", model)
    (folder / "hf").symlink_to(model)
    says = Model(boxed("1", "1", "1"))
    summary = run(says, target=folder)
    s = summary["settings"]
    assert (s["samples"], s["temperature"], s["max_tokens"], s["template"], s["style"]) == (
        3, 0.7, 50, "plain", "think_answer")
    assert summary["data"]["set"]["no_answer"] == 1.0  # the box is inside the thinking
    assert says.given["args"] == (str(folder / "hf"), "plain", 50) and says.given["dtype"] == "float32"
    assert says.given["stop"] == s["stop"] == []


def test_a_runs_own_function_judges_domain_other(run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_run(tmp_path / "run", model)
    (folder / "hf").symlink_to(model)
    (tmp_path / "own.py").write_text("def says(problem, response): return problem.extra['worth'] * ('yes' in response)")
    rows = [{"id": f"o{i}", "domain": "other", "prompt": "Well?", "worth": w} for i, w in enumerate((1, 0.5))]
    with pytest.raises(UserError, match=r"problem 'set/o0': domain = 'other': no function in reward.custom has role"):
        run(boxed(), rows=rows, target=folder)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("think_answer}", "think_answer, custom: [{function: 'own:says', "
                                                       "role: correct}, {function: 'not:here'}]}"))
    run(boxed("1", "1", "1"), target=folder, out="maths")     # without the function, which cannot be imported here
    monkeypatch.syspath_prepend(str(tmp_path))
    found = run(lambda problem, j: ("yes", "no", "yes")[j], rows=rows, target=folder)["domains"]["other"]
    assert found["avg@3"]["mean"] == 0.5 and found["pass@3"]["mean"] == 0.5 and found["no_answer"] is None
    assert "majority@3" not in found
    assert [(s["correct"], s["extracted"], s["reason"]) for s in samples(tmp_path / "out")][:2] == [
        (1.0, None, "own:says: 1"), (0.0, None, "own:says: 0")]


@pytest.mark.parametrize(("template", "style"), [
    ("chat", "boxed"), ("srpo", "think_answer"), ("plain", "think_answer")])
def test_an_answer_style_that_is_left_open_is_that_of_training(template: str, style: str):
    sections = {"run": "r", "model": {"path": "m"}, "data": {"train": ["t"], "template": template},
                "stages": [{"name": "a", "domains": ["math"], "until": "steps", "steps": 1}]}
    config = Config.model_validate(sections)
    assert answer_style(config.reward.style, template) == settle({}, config).style == style
    assert settle({"template": template}, None).style == settle({"template": template}, config).style == style
    boxed = Config.model_validate({**sections, "reward": {"style": "boxed"}})
    assert answer_style(boxed.reward.style, template) == settle({}, boxed).style == "boxed"
    assert settle({"template": template}, boxed).style == style  # the run's was for its own template


@pytest.mark.parametrize(("template", "of_run", "said", "stop"), [
    ("srpo", None, [], ["</answer>"]), ("plain", None, [], []), ("chat", None, [], []),
    ("srpo", ["User:"], [], ["User:"]), ("srpo", [], [], []), ("plain", ["."], [], ["."]),
    ("plain", ["."], ["--stop", "a b", "c"], ["a b", "c"]), ("srpo", None, ["--stop"], []),
    ("plain", ["."], ["--template", "srpo"], ["</answer>"]),
])
def test_stop_strings_are_those_of_training(template: str, of_run: list[str] | None, said: list[str], stop: list[str]):
    config = Config.model_validate({
        "run": "r", "model": {"path": "m"}, "data": {"train": ["t"], "template": template}, "rollout": {"stop": of_run},
        "stages": [{"name": "a", "domains": ["math"], "until": "steps", "steps": 1}]})
    given = vars(arguments("MODEL", "--data", "x", "--out", "y", *said))
    assert settle({name: given[name] for name in ("template", "stop")}, config).stop == stop
    if not said:
        assert stop_strings(of_run, template) == stop


def test_a_run_that_goes_on_is_exported_once(run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_run(tmp_path / "run", model)
    with pytest.raises(UserError, match="run: the run has neither finished .* nor saved a checkpoint"):
        run(boxed("1"), target=folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/latest").write_text("step-00000002")
    exports = []

    def export(words, **_):
        exports.append(words)
        toy.write_model(Path(words[-1]), seed=1)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("srpo.evaluation.subject.subprocess.run", export)
    for _ in range(2):
        assert run(boxed("1", "1", "1"), target=folder)["model"]["checkpoint"] == "step-00000002"
    assert [words[2:] for words in exports] == [["srpo", "export", str(folder), str(tmp_path / "out/model")]]
    (folder / "checkpoints/latest").write_text("step-00000004")
    with pytest.raises(UserError, match="is of step-00000002, and the run is at step-00000004 by now; choose another"):
        run(boxed("1", "1", "1"), target=folder)

    failed = SimpleNamespace(returncode=2, stderr="log\nsrpo: error: step-00000004: damaged\n")
    monkeypatch.setattr("srpo.evaluation.subject.subprocess.run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="run: step-00000004 cannot be exported: step-00000004: damaged$"):
        run(boxed("1"), target=folder, out="new")


@pytest.mark.parametrize(("options", "message"), [
    (("-k", "1,8"), r"-k 8: must be from 1 to the number of samples, which is 4"),
    (("-k", "0"), r"-k 0: must be from 1"),
    (("-k", "two"), r"-k two: write whole numbers"),
    (("--temperature", "0"), r"--temperature = 0 gives the same response 4 times"),
    (("--temperature", "-1"), r"--temperature = -1.0: must be 0 or more"),
    (("--temperature", "nan"), r"--temperature = nan: must be 0 or more"),
    (("--top-p", "0"), r"--top-p = 0.0: must be above 0 and at most 1"),
    (("--samples", "0"), r"--samples = 0: must be at least 1"),
    (("--samples", "2000"), r"--samples = 2000: at most 1000"),
    (("--max-tokens", "0"), r"--max-tokens = 0: must be at least 1"),
    (("--max-tokens", "300"), r"--max-tokens = 300: with the 3 tokens of problem 'set/m0' it exceeds the model's 256 "
                              r"positions; at most 253"),
    (("--chunk", "0"), r"--chunk = 0: must be at least 1"),
    (("--tensor", "2"), r"--tensor 2: the number of ranks, 1, is no multiple of it; start them with torchrun"),
    (("--template", "chat"), r"template = 'chat': the tokenizer in .* has no chat template; use 'srpo'"),
])
def test_bad_settings(options, message, run):
    with pytest.raises(UserError, match=message):
        run(boxed("1"), *options)


def test_greedy_is_one_sample(run, tmp_path: Path, model: Path):
    summary = run(boxed("1"), "--temperature", "0", "--samples", "1")
    assert list(k for k in summary["data"]["set"] if "@" in k) == ["avg@1", "pass@1", "majority@1"]


def test_what_is_no_model(run, tmp_path: Path, model: Path):
    with pytest.raises(UserError, match=r"nothing: neither a Hugging Face directory .* nor a run folder"):
        run(boxed("1"), target=tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "empty" / name).write_bytes((model / name).read_bytes())
    with pytest.raises(UserError, match=r"empty: holds no weights"):
        run(boxed("1"), "--template", "plain", "--max-tokens", "9", target=tmp_path / "empty", out="b")
