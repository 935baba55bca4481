"""Which of a problem's answers are the same: by the grader that training uses, in its processes, with its deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.rewards import Graders, Response
from srpo.rewards import math as math_reward
from srpo.rewards.answers import plain, respell


def group_answers(answers: Mapping[str, Sequence[str | None]], graders: Graders) -> dict[str, list[int | None]]:
    """For the answers to each problem, by its id: the number of the group that each belongs to, from 0 in order of
    appearance; None for no answer.

    An answer joins the first group whose first member, as the reference, the grader finds it equal to. That relation
    is not always transitive ("5", "5 cm" and "5 m"), so the order of the samples can matter; it is that of their
    numbers. What is no reference that can be compared with, or takes too long, equals its own text alone.
    """
    spelled = {i: [None if a is None else plain(respell(a)) for a in given] for i, given in answers.items()}
    different = {i: dict(zip(reversed(s), reversed(answers[i]), strict=True)) for i, s in spelled.items()}
    waiting = {i: [s for s in dict.fromkeys(s) if s is not None] for i, s in spelled.items()}
    heads: dict[str, list[str]] = {i: [] for i in answers}
    number: dict[str, dict[str, int]] = {i: {} for i in answers}
    while waiting := {i: left for i, left in waiting.items() if left}:
        pairs = {}
        for i, left in waiting.items():
            for h, head in enumerate(heads[i]):
                reference, given = different[i][head], different[i][left[0]]
                if reference is not None and given is not None and _comparable(reference):
                    pairs[i, h] = Response(Problem(i, "math", "", answer=reference), f"</think>\\boxed{{{given}}}", 0,
                                           False)
        graders.submit(pairs)
        equal = [key for key, grade in graders.collect().items() if grade.correct == 1]
        for i, left in waiting.items():
            spelling = left.pop(0)
            found = min((h for j, h in equal if j == i), default=len(heads[i]))
            if found == len(heads[i]):
                heads[i].append(spelling)
            number[i][spelling] = found
    return {i: [None if s is None else number[i][s] for s in given] for i, given in spelled.items()}


def _comparable(reference: str) -> bool:
    try:
        math_reward.check(reference)
    except UserError:
        return False
    return True
