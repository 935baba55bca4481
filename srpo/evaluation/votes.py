"""Which of a problem's answers are the same: by the grader that training uses, in its processes, with its deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.rewards import Graders, Response
from srpo.rewards import math as math_reward
from srpo.rewards.answers import plain, respell

COMPARED = 100
"""Groups, the first ones, that the grader compares an answer with where no value tells them apart: so comparisons grow
with the number of different answers, not with its square. Samples come in no particular order, so that frequent answers
are among the first. Beyond these groups an answer is found in one only by its text or its value."""


@dataclass
class _Problem:
    """One problem's answers: those to come, the last one first, and the groups so far. `heads`: their first answers;
    the other lists are of groups whose first answer can be compared with."""

    waiting: list[str]
    number: dict[str, int] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    comparable: list[int] = field(default_factory=list)
    by_value: dict[Fraction, list[int]] = field(default_factory=dict)
    without_value: list[int] = field(default_factory=list)

    def candidates(self, value: Fraction | None) -> list[int]:
        """Groups that an answer with this value may belong to, in order."""
        if value is None:
            return self.comparable[:COMPARED]
        near = {h for v in (value, value * 100, value / 100) for h in self.by_value.get(v, [])[:COMPARED]}
        return sorted({*near, *self.without_value[:COMPARED]})

    def add(self, spelling: str, text: str, found: int | None) -> None:
        """An answer to the group that was found, or to one of its own."""
        if found is None:
            found = len(self.heads)
            self.heads.append(text)
            if _comparable(text):
                value = math_reward.value(text)
                self.comparable.append(found)
                (self.without_value if value is None else self.by_value.setdefault(value, [])).append(found)
        self.number[spelling] = found


def group_answers(answers: Mapping[str, Sequence[str | None]], graders: Graders) -> dict[str, list[int | None]]:
    """For the answers to each problem, by its id: the number of the group that each belongs to, from 0 in order of
    appearance; None for no answer.

    An answer joins the first group whose first member, as the reference, the grader finds it equal to. That relation
    is not always transitive ("5", "5 cm" and "5 m"), so the order of the samples can matter; it is that of their
    numbers. What is no reference that can be compared with, or takes too long, equals its own text alone. Numbers with
    different values are not compared, and of more than `COMPARED` groups only some.
    """
    spelled = {i: [None if a is None else plain(respell(a)) for a in given] for i, given in answers.items()}
    texts = {i: {s: a for s, a in zip(reversed(spelled[i]), reversed(given), strict=True) if s is not None
                 and a is not None} for i, given in answers.items()}
    problems = {i: _Problem(list(dict.fromkeys(s for s in spelled[i] if s is not None))[::-1]) for i in answers}
    while left := {i: p for i, p in problems.items() if p.waiting}:
        pairs = {}
        for i, problem in left.items():
            given = texts[i][problem.waiting[-1]]
            for h in problem.candidates(math_reward.value(given)):
                reference = Problem(i, "math", "", answer=problem.heads[h])
                pairs[i, h] = Response(reference, f"</think>\\boxed{{{given}}}", 0, False)
        graders.submit(pairs)
        equal: dict[str, int] = {}
        for (i, h), grade in graders.collect().items():
            if grade.correct == 1:
                equal.setdefault(i, h)                        # pairs are in the order of the groups
        for i, problem in left.items():
            spelling = problem.waiting.pop()
            problem.add(spelling, texts[i][spelling], equal.get(i))
    return {i: [None if s is None else problems[i].number[s] for s in given] for i, given in spelled.items()}


def _comparable(reference: str) -> bool:
    try:
        math_reward.check(reference)
    except UserError:
        return False
    return True
