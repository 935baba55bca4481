"""The reward of a response: accuracy x correct + format x well-formed - language x mixing - overlong + custom.

What is correct, the graders of maths and code say, and in domain other the user's function with `role: correct`.
A grader that hangs, dies, raises or returns what is no finite number costs its response a zero, counted as failed;
a custom function that fails on `BROKEN` groups in a row is a mistake in the function and stops the run.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srpo import sandbox
from srpo.config import CustomReward, Reward
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.rewards import math
from srpo.rewards.pool import Lost, Pool

log = logging.getLogger(__name__)

BROKEN = 8
"""Groups, a problem's responses in one call, on which a custom function fails in a row. A call alone says little: with
resample.sampler: dynamic it may be a single problem, of a kind that the function cannot deal with."""


@dataclass(frozen=True)
class Response:
    """What the model wrote after the prompt; `tokens` is its length."""

    problem: Problem
    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Graded:
    """`correct` in [0, 1]; `parts` are weighted and add up to `reward`; `failed`: it could not be graded, `mistaken`:
    because a user's function raised; `answered`: there was an answer or program to judge."""

    correct: float
    reward: float
    parts: dict[str, float]
    reason: str
    failed: bool
    answered: bool = True
    mistaken: bool = False


def judge(custom: Sequence[CustomReward]) -> CustomReward:
    """The function that decides what is correct in domain other. Raises UserError where there is none."""
    for one in custom:
        if one.role == "correct":
            return one
    raise UserError("domain = 'other': no function in reward.custom has role: correct")


def check_problems(problems: Iterable[Problem], custom: Sequence[CustomReward] = ()) -> None:
    """Refuse problems that no response could be graded against, before a run spends hours to reach them: tests of an
    unknown kind, without cases or with code that does not parse, answers that are empty or cannot be read, domain other
    without a function of `custom` that decides.

    Seconds for 100,000 problems. Raises UserError naming the problem.
    """
    for problem in problems:
        try:
            if problem.domain == "math":
                math.check(problem.answer or "")
            elif problem.domain == "other":
                judge(custom)
            else:
                sandbox.check(problem.tests or {})
        except UserError as e:
            raise _unusable(problem, e) from None


def _unusable(problem: Problem, why: object) -> UserError:
    return UserError(f"problem {problem.id!r}: {why}; correct or drop it")


@dataclass
class _Failing:
    """How often a custom function failed since a call in which it succeeded."""

    groups: int = 0
    responses: int = 0


class Graders:
    """Grades responses in `workers` processes. Raises UserError when a custom function cannot be imported."""

    def __init__(self, reward: Reward, max_response_tokens: int, workers: int):
        self._custom = reward.custom
        self._failing = {c.function: _Failing() for c in reward.custom}
        settings = {"reward": reward.model_dump(), "max_response_tokens": max_response_tokens}
        self._pool = Pool("srpo.rewards.worker", settings, workers, reward.timeout)
        self._submitted: dict[Hashable, Response] = {}

    def submit(self, responses: Mapping[Any, Response]) -> None:
        """Begin to grade responses, each under a name of its own. Waits for nothing; grading moves on with each call,
        also with one that brings no response."""
        self._submitted |= responses
        self._pool.submit([
            {"problem": vars(r.problem), "text": r.text, "tokens": r.tokens} for r in responses.values()])

    def grade(self, responses: Sequence[Response]) -> list[Graded]:
        """Grades in the responses' order; raises what `collect` does."""
        self.submit(dict(enumerate(responses)))
        return list(self.collect().values())

    def collect(self) -> dict[Any, Graded]:
        """The grades of all that was submitted since the last call. Raises UserError naming a problem whose answer or
        tests are unusable, or a custom function that is broken."""
        responses, self._submitted = self._submitted, {}
        failed: dict[str, list[tuple[str, str]]] = {}
        succeeded: set[str] = set()
        graded = {}
        for (key, response), answer in zip(responses.items(), self._pool.collect(), strict=True):
            failures = _failures(response, answer)
            for name, why in failures:
                log.warning("reward function %s failed on problem %s: %s; it scores zero",
                            name, response.problem.id, why)
                failed.setdefault(name, []).append((response.problem.id, why))
            if isinstance(answer, dict):
                succeeded |= self._called_for(response.problem) - {name for name, _ in failures}
            mistaken = isinstance(answer, dict) and all(name in self._failing for name, _ in failures)
            graded[key] = _failed(failures, mistaken) if failures else _graded(answer)  # type: ignore[arg-type]
        self._heed(succeeded, failed)
        return graded

    def _called_for(self, problem: Problem) -> set[str]:
        return {c.function for c in self._custom if c.role == "bonus" or problem.domain == "other"}

    def _heed(self, succeeded: set[str], failed: dict[str, list[tuple[str, str]]]) -> None:
        """`failed`: (problem's id, error) of a call's responses, by function."""
        for name, streak in self._failing.items():
            if name in succeeded:
                streak.groups = streak.responses = 0
            elif name in failed:
                streak.groups += len({problem for problem, _ in failed[name]})
                streak.responses += len(failed[name])
            if streak.groups >= BROKEN:
                raise UserError(f"reward.custom: {name!r} failed on all of the last {streak.responses} responses: "
                                f"{failed[name][-1][1]}")

    def close(self) -> None:
        self._pool.close()


def _failures(response: Response, answer: dict[str, Any] | Lost) -> list[tuple[str, str]]:
    """(function, error) of whatever went wrong with one response."""
    if isinstance(answer, Lost):
        return [(answer.at or response.problem.domain, answer.why)]
    if "data" in answer:
        raise _unusable(response.problem, answer["data"])
    return [(name, why) for name, why in answer["errors"]]


def _failed(failures: list[tuple[str, str]], mistaken: bool) -> Graded:
    reason = "; ".join(f"{name}: {why}" for name, why in failures)
    return Graded(0.0, 0.0, {}, reason, failed=True, mistaken=mistaken)


def _graded(answer: dict[str, Any]) -> Graded:
    return Graded(answer["correct"], sum(answer["parts"].values()), answer["parts"], answer["reason"], failed=False,
                  answered=answer["extracted"] is not None)
