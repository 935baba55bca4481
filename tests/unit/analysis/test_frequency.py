"""Counts over a run, against counting by hand; and what the command prints of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from srpo import samples
from srpo.analysis import frequency
from srpo.analysis.frequency import Frequency, analyse, frequencies, pooled, wilson
from srpo.analysis.patterns import Patterns
from srpo.cli import command
from srpo.errors import UserError
from srpo.samples import StoredResponse

OWN = """
doubt: {about: stops, keywords: [wait, hmm]}
verify: {about: looks again, domains: [math], after_answer: [doubt]}
"""
DOUBT, DONE = "x is 7. Hmm, wait: fine.</think> <answer>7</answer>", "x is 7.</think> <answer>7</answer>"


def row(step: int, i: int, response: str, domain: str = "math", tokens: int = 10,
        correct: float = 1.0) -> StoredResponse:
    stage = "both" if step > 2 else "maths"
    return StoredResponse(step, 1, stage, f"p{i}", i, domain, f"What is {i}?", response, correct, correct,
                          {"accuracy": correct}, "why", tokens, False, False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    samples.write(tmp_path, 1, [row(1, 0, DOUBT, tokens=30), row(1, 1, DOUBT, tokens=50, correct=0.0),
                                row(1, 2, DONE, tokens=7)])
    samples.write(tmp_path, 3, [row(3, 0, DONE), row(3, 1, "Wait.", "code", 20, 0.0), row(3, 2, "Done.", "code", 4)])
    return tmp_path


@pytest.fixture
def own(tmp_path: Path) -> Patterns:
    (tmp_path / "own.yaml").write_text(OWN)
    return Patterns.load(tmp_path / "own.yaml")


def test_frequencies(run, own):
    assert frequencies(run, own) == [
        Frequency(1, "maths", "math", "doubt", 3, 2, 40.0, 7.0, 0.5, 1.0),
        Frequency(1, "maths", "math", "verify", 3, 2, 40.0, 7.0, 0.5, 1.0),
        Frequency(3, "both", "code", "doubt", 2, 1, 20.0, 4.0, 0.0, 1.0),
        Frequency(3, "both", "math", "doubt", 1, 0, None, 10.0, None, 1.0),
        Frequency(3, "both", "math", "verify", 1, 0, None, 10.0, None, 1.0)]
    assert {f.step for f in frequencies(run, own, range(2, 9))} == {3}


def test_keywords_count_responses(run, own):
    analysis = analyse(run, own)
    assert {name: dict(counts) for name, counts in analysis.keywords.items()} == {
        "doubt": {"wait": 3, "hmm": 2}}


def test_rows_are_pooled_by_their_responses(run, own):
    rows = [row for row in frequencies(run, own) if row.pattern == "doubt"]
    (whole,) = pooled(rows, "pattern")
    assert (whole.responses, whole.matching) == (6, 3)
    assert whole.tokens_with == pytest.approx((30 + 50 + 20) / 3) and whole.tokens_without == pytest.approx(7)
    assert whole.accuracy_with == pytest.approx(1 / 3) and whole.accuracy_without == 1
    assert [(r.domain, r.responses) for r in pooled(rows, "domain")] == [("math", 4), ("code", 2)]


def test_a_step_of_several_batches_counts_once(tmp_path, own):
    rng = random.Random(1)
    rows = [row(1, i, rng.choice([DOUBT, DONE]), rng.choice(["math", "code"]), rng.randrange(99)) for i in range(700)]
    samples.write(tmp_path, 1, rows)
    for found in frequencies(tmp_path, own):
        members = [r for r in rows if r.domain == found.domain]
        matching = [r.tokens for r in members if r.response == DOUBT]
        assert (found.responses, found.matching) == (len(members), len(matching))
        assert found.tokens_with == pytest.approx(sum(matching) / len(matching))


def test_processes_find_the_same(run, own, monkeypatch):
    alone = analyse(run, own, shown=2)
    monkeypatch.setattr(frequency, "ALONE", 0)
    monkeypatch.setattr(frequency.os, "sched_getaffinity", lambda _: {0, 1})
    assert analyse(run, own, shown=2) == alone


@pytest.mark.parametrize(("matching", "responses", "low", "high"), [
    (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)])
def test_intervals(matching, responses, low, high):
    """The last is Newcombe's (1998) example of a single proportion."""
    assert wilson(matching, responses) == pytest.approx((low, high), abs=1e-4)


def test_examples_are_of_the_whole_run(tmp_path, own):
    for step in range(1, 13):
        samples.write(tmp_path, step, [row(step, step, f"First. {DOUBT}")])
    shown = [e for e in analyse(tmp_path, own, shown=3).examples if e.pattern == "doubt"]
    assert [e.step for e in shown] == [3, 7, 11]
    assert [(e.before, e.match, e.after) for e in shown] == [
        ("First. x is 7. ", "Hmm", ", wait: fine.</think> <answer>7</answer>")] * 3


def test_an_example_of_each_kind(tmp_path):
    loop = "Счёт. " + "So we come to the end and the answer is seven. " * 9
    samples.write(tmp_path, 1, [row(1, 0, loop), row(1, 1, DONE), row(1, 2, "验算？对。" + DOUBT),
                                row(1, 3, "The value is seven. Следовательно, ответ равен семи, что и требовалось.")])
    found = {e.pattern: e for e in analyse(tmp_path, Patterns.load(), shown=9).examples}
    assert found["hesitation"].match == "Hmm" and found["recheck"].match == "验算"
    assert len(found["repetition"].match) == 48 and found["repetition"].prompt_id == "p0"
    assert found["language_mixing"].match.strip() == "Следовательно, ответ равен семи, что и требовалось"


def test_the_command_prints_tables(run, own, capsys):
    assert command(["analyze", str(run), "--patterns", str(own.file), "--examples", "1"]) == 0
    printed = capsys.readouterr().out
    assert "stored responses of 2 steps, 1 to 3" in printed and "66.7" in printed and ">>Hmm<<" in printed
    assert [line.split() for line in printed.splitlines() if "doubt" in line and "maths" in line] == [
        ["doubt", "maths", "math", "3", "2", "66.7", "20.8", "93.9", "40", "7", "0.500", "1.000"]]


def test_the_command_prints_json(run, own, capsys):
    assert command(["analyze", str(run), "--patterns", str(own.file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["frequencies"][0] == {
        "step": 1, "stage": "maths", "domain": "math", "pattern": "doubt", "responses": 3, "matching": 2,
        "tokens_with": 40.0, "tokens_without": 7.0, "accuracy_with": 0.5, "accuracy_without": 1.0,
        "frequency": pytest.approx(2 / 3), "low": pytest.approx(0.2077, abs=1e-4),
        "high": pytest.approx(0.9385, abs=1e-4)}
    assert document["keywords"]["doubt"] == {"hmm": 2, "wait": 3}


def test_json_holds_no_control_characters(tmp_path, own, capsys):
    samples.write(tmp_path, 1, [replace(row(1, 0, "\x9b2J wait: fine.</think> 7"), prompt_id="p\x9b31m\x7f")])
    assert command(["analyze", str(tmp_path), "--patterns", str(own.file), "--json"]) == 0
    printed = capsys.readouterr().out
    assert not set(printed.rstrip("\n")) & {chr(code) for code in (*range(32), *range(0x7F, 0xA0))}
    assert {e["prompt_id"] for e in json.loads(printed)["examples"]} == {"p\x9b31m\x7f"}


def test_stored_responses_are_shown(run, capsys):
    assert command(["analyze", str(run), "--show", "3"]) == 0
    by_step = capsys.readouterr().out
    assert by_step.count("step 3, both") == 3 and "What is 1?Wait." in by_step and "why" in by_step
    assert command(["analyze", str(run), "--show", "p0"]) == 0
    assert capsys.readouterr().out.count("p0, sample 0") == 2
    assert command(["analyze", str(run), "--show", "p9"]) == 2
    assert "no stored responses of such a step" in capsys.readouterr().err


def test_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    samples.write(tmp_path, 1, [replace(row(1, 0, DOUBT), stage="one[/x]", prompt_id="p[/y]")])
    assert command(["analyze", str(tmp_path)]) == 0
    assert "one[/x]" in capsys.readouterr().out
    assert command(["analyze", str(tmp_path), "--show", "1"]) == 0
    assert "one[/x]: p[/y]" in capsys.readouterr().out


def test_what_responses_hold_does_not_reach_the_terminal(tmp_path, capsys):
    """Erasing the screen, the window's title, the clipboard: all of it begins with a control character."""
    text = "\x1b]52;c;AA==\x07 Hmm, wait \x9b2J :x:"
    samples.write(tmp_path, 1, [replace(row(1, 0, text), prompt=text, prompt_id=text, reason=text)])
    for options in ([], ["--show", "1"]):
        assert command(["analyze", str(tmp_path), *options]) == 0
        printed = capsys.readouterr().out
        assert "␛]52;c;AA==␇ " in printed and "\ufffd2J :x:" in printed and not set(printed) & set("\x1b\x07\x9b")


def test_a_run_without_responses_is_told(tmp_path, own):
    with pytest.raises(UserError, match="not a run folder"):
        frequencies(tmp_path, own)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="there are no stored responses"):
        frequencies(tmp_path, own)
