"""What is found in a batch of responses, against plain loops and by example."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from srpo.analysis import detect
from srpo.analysis.detect import WINDOW, Batch, answered, repeated, windows
from srpo.analysis.patterns import Pattern, Patterns
from srpo.rewards.language import mixing


def patterns(tmp_path, text: str) -> Patterns:
    file = tmp_path / "patterns.yaml"
    file.write_text(text, encoding="utf-8")
    return Patterns.load(file)


def batch(*responses: str, domain: str = "math", prompt: str = "How much is it?") -> Batch:
    return Batch(pa.RecordBatch.from_pylist(
        [{"domain": domain, "prompt": f"{prompt} {i}", "response": text} for i, text in enumerate(responses)]))


def test_windows_are_equal_where_their_bytes_are():
    rng = random.Random(1)
    text = "".join(rng.choice(["abc", "等", "1+1=2; "]) for _ in range(400)) * 2
    data = text.encode()
    pieces = [data[i:i + WINDOW] for i in range(len(data) - WINDOW + 1)]
    hashes = windows(text).tolist()
    assert len(hashes) == len(pieces) and len(set(hashes)) == len(set(pieces))
    assert {p: h for p, h in zip(pieces, hashes, strict=True)} == {p: hashes[pieces.index(p)] for p in set(pieces)}


@pytest.mark.parametrize(("text", "low", "high"), [
    ("", 0, 0), ("short", 0, 0), ("x" * WINDOW, 0, 0), ("x" * (WINDOW + 1), 1, 1),
    ("So the answer is five, and we are done now. " * 50, 0.97, 1),
    ("".join(f"{i * i} and " for i in range(1000)), 0, 0.01)])
def test_the_share_that_repeats(text, low, high):
    assert low <= repeated(text) <= high


def test_half_of_a_text_that_is_written_twice_repeats():
    rng = random.Random(1)
    text = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(20_000))
    assert repeated(text * 2) == pytest.approx(0.5, abs=0.005) and repeated(text) == 0


@pytest.mark.parametrize(("text", "rest"), [
    (r"1 + 1 = 2. Let me see.</think> \boxed{2}", r". Let me see.</think> \boxed{2}"),
    ("x = 24, y = 2.5, so it is 2, surely</think> <answer>2</answer>", ", surely</think> <answer>2</answer>"),
    ("和为 8。验算</think> <answer>8</answer>", "。验算</think> <answer>8</answer>"),
    ("The sum is (a+b)*. Check</think> <answer>(a+b)*</answer>", ". Check</think> <answer>(a+b)*</answer>"),
    ("x = 2, and no more is said", ""), ("<think> x = 2", "")])
def test_where_the_answer_was_first_stated(text, rest):
    assert text[answered(text):] == rest


def test_a_check_counts_only_after_the_answer(tmp_path):
    own = patterns(tmp_path, "look: {about: x, keywords: [check]}\nverify: {about: x, after_answer: [look]}")
    found = batch("I check it. x = 3.</think> <answer>3</answer>", "x = 3. I check it.</think> <answer>3</answer>",
                  "x = 3.</think> <answer>3</answer>")
    assert found.shows("look", own).tolist() == [True, True, False]
    assert found.shows("verify", own).tolist() == [False, True, False]


def test_a_domain_alone(tmp_path):
    own = patterns(tmp_path, "look: {about: x, domains: [code], keywords: [check]}")
    assert batch("check").considered("look", own).tolist() == [False]
    assert batch("check").shows("look", own).tolist() == [False]
    assert batch("check", domain="code").shows("look", own).tolist() == [True]


def test_programs_that_answer_code_problems_are_left_out(tmp_path):
    own = patterns(tmp_path, "look: {about: x, keywords: [check]}")
    program = "```python\n# check\n```"
    assert batch(program, f"check\n{program}", f"{program}\ncheck", "```\n# check, cut off",
                 domain="code").shows("look", own).tolist() == [False, True, True, False]
    assert batch(program).shows("look", own).tolist() == [True]


def test_a_pattern_that_would_take_python_for_ever(tmp_path):
    own = patterns(tmp_path, "bad: {about: x, keywords: ['(?:a+)+b']}")
    assert batch("a" * 100_000).shows("bad", own).tolist() == [False]


def test_the_template_has_no_say_in_the_language():
    template = "A conversation between User and Assistant.\nUser: {}\nAssistant: <think>"
    prompts = [template.format(p) for p in ("求圆的面积，半径为三。", "计算二加三等于多少。")]
    answer = "The area is nine times pi, as the formula says."
    texts = Batch(pa.RecordBatch.from_pylist([{"domain": "math", "prompt": p, "response": answer} for p in prompts]))
    assert texts.bare_prompts() == ["求圆的面积，半径为三", "计算二加三等于多少"]
    patterns = Patterns({"mixed": Pattern(about="x", mixing=0.5)}, Path("mine.yaml"))
    assert mixing(prompts[0], answer) < 0.5
    assert texts.shows("mixed", patterns).tolist() == [True, True]


def test_language_is_asked_of_as_many_as_the_budget_has(monkeypatch, tmp_path):
    own = patterns(tmp_path, "mixed: {about: x, mixing: 0.5}")
    texts = batch(*["Это русский текст из нескольких слов. " * 10] * 40)
    assert texts.considered("mixed", own).all() and texts.shows("mixed", own).all()
    monkeypatch.setattr(detect, "LANGUAGE_BUDGET", 3000)
    asked = texts.considered("mixed", own)
    assert 3 <= asked.sum() <= 10
    assert np.array_equal(texts.shows("mixed", own), asked)
