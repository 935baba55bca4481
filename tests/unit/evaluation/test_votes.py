"""Answers are grouped as the maths grader compares them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from srpo.config import Reward
from srpo.evaluation.votes import group_answers
from srpo.rewards import Graders


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
