"""Answers are grouped as the maths grader compares them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from srpo.config import Reward
from srpo.errors import UserError
from srpo.evaluation import votes
from srpo.evaluation.votes import group_answers
from srpo.rewards import Graded, Graders
from srpo.rewards import math as math_reward
from srpo.rewards.answers import plain, respell


@pytest.fixture(scope="module", params=["boxed", "think_answer"])
def graders(request: pytest.FixtureRequest) -> Iterator[Graders]:
    graders = Graders(Reward(style=request.param), 100, 1)
    yield graders
    graders.close()


def test_spellings_of_one_value_vote_together(graders: Graders):
    answers = {"half": ["1/2", "0.5", "\\frac{1}{2}", "2", None, "0.5", "\\boxed{2}"],
               "algebra": ["(x+1)^2", "x^2+2x+1", "x^2"],
               "nobody": [None, None]}
    assert group_answers(answers, graders) == {
        "half": [0, 0, 0, 1, None, 0, 1], "algebra": [0, 0, 1], "nobody": [None, None]}


def test_what_cannot_be_a_reference_is_a_group_of_its_own_text(graders: Graders):
    """An unbalanced brace, nothing but a mark, a tower that nobody evaluates: none stops the evaluation."""
    answers = {"odd": ["}{", "...", "}{", "9^{9^{9^9}}", "3", "9^{9^{9^9}}", "3"]}
    assert group_answers(answers, graders) == {"odd": [0, 1, 0, 2, 3, 2, 3]}


def test_the_first_group_that_takes_an_answer_has_it(graders: Graders):
    assert group_answers({"u": ["5 cm", "5 m", "5"]}, graders) == {"u": [0, 1, 0]}
    assert group_answers({"u": ["5", "5 cm", "5 m"]}, graders) == {"u": [0, 0, 0]}


ANSWERS = [
    "5", "5.0", "5 cm", "5\\text{ m}", "x = 5", "\\frac{10}{2}", "500\\%", "0.05", "5\\%", "-5", "\\sqrt{25}", "$5",
    "\\$5", "2+3", "\\{5\\}", "5,000", "5000", "5 thousand", "50^\\circ", "50", "1/2", "\\frac12", "0.5", "50\\%",
    "the answer is 5", "y = 5", "(5)", "5_8", "5, 6", "6, 5", "x=5, y=6", "\\approx 5", "5 apples", "5 pears",
    "5 \\times 10^{0}", "5e0", "4 1/2", "9/2", "(B)", "B", "}{", "\\pi", "3.14159265"]


@pytest.mark.parametrize("seed", range(3))
def test_values_spare_comparisons_and_change_no_group(graders: Graders, seed: int):
    """Against comparing every answer with the first of every group."""
    given = random.Random(seed).sample(ANSWERS, len(ANSWERS))
    heads: list[str] = []
    expected = []
    for answer in given:
        found = next((h for h, head in enumerate(heads) if same(answer, head)), len(heads))
        if found == len(heads):
            heads.append(answer)
        expected.append(found)
    assert group_answers({"p": given}, graders) == {"p": expected}


def same(given: str, reference: str) -> bool:
    if plain(respell(given)) == plain(respell(reference)):
        return True
    try:
        return math_reward.equal(given, reference)
    except UserError:
        return False


class Counting:
    """Finds nothing equal, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked, self._submitted = 0, {}

    def submit(self, responses: dict) -> None:
        self.asked += len(responses)
        self._submitted = responses

    def collect(self) -> dict:
        return {key: Graded(0.0, 0.0, {}, "", False) for key in self._submitted}


def test_numbers_are_told_apart_without_the_grader():
    counting = Counting()
    assert group_answers({"p": [str(i) for i in range(1, 99)]}, counting) == {"p": list(range(98))}
    assert counting.asked == 0


def test_what_has_no_value_is_compared_with_so_many_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(votes, "COMPARED", 3)
    counting = Counting()
    group_answers({"p": [f"x^{{{i}}}" for i in range(2, 12)] + ["7"]}, counting)
    assert counting.asked == 0 + 1 + 2 + 8 * 3
