"""A grader process: `python -m srpo.rewards.worker CHANNEL STORE SETTINGS`, started by srpo/rewards/pool.py.

It reads one response at a time and answers with what each part of the reward gives it. Before a user's function runs
it says which, so that whoever has to kill it knows what hung.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from srpo.config import CustomReward, Reward
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.rewards import code as code_reward
from srpo.rewards import math as math_reward
from srpo.rewards.compose import judge
from srpo.rewards.extract import Grade, as_graded
from srpo.rewards.format import well_formed
from srpo.rewards.language import mixing
from srpo.rewards.length import overlong
from srpo.rewards.wire import send, serve
from srpo.sandbox import Limits, Refused, allow_unsafe
from srpo.sandbox.confine import die_with_parent

MATH_MEMORY = 2 << 30
"""Bytes that grading one answer may take."""
MAX_ERROR = 500
"""Characters of an error that are reported."""

Custom = dict[str, Callable[[Problem, str], float]]


class Failed(Exception):
    """A user's function gave no value; the arguments are its name and why."""


def main() -> None:
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's goes to every process; the rank decides when to stop
    channel = Connection(int(sys.argv[1]))
    settings = json.loads(sys.argv[3])
    reward = Reward.model_validate(settings["reward"])
    if reward.allow_unsafe_sandbox:
        allow_unsafe()
    try:
        functions = load_functions(reward)
    except UserError as e:
        send(channel, {"error": str(e)})
        return
    serve(channel, int(sys.argv[2]), partial(answer, reward, settings["max_response_tokens"], functions, channel))


def answer(reward: Reward, max_response_tokens: int, functions: Custom, channel: Connection,
           request: dict[str, Any]) -> dict[str, Any]:
    """What the pool is told of a response; `data`: what is wrong with its problem, `error`: with this host."""
    problem = Problem(**request["problem"])
    call = partial(call_custom, functions, channel, problem, request["text"])
    try:
        graded = parts(reward, problem, request["text"], call)
        if reward.overlong:
            graded["parts"]["overlong"] = -overlong(request["tokens"], max_response_tokens, reward.overlong)
        add_bonuses(reward, graded, call)
    except Refused as e:
        return {"error": str(e)}
    except UserError as e:
        return {"data": str(e)}
    return graded


def load_functions(reward: Reward) -> Custom:
    """The user's functions by name. Raises UserError naming the one that cannot be had."""
    sys.path.insert(0, os.getcwd())
    functions: Custom = {}
    for i, custom in enumerate(reward.custom):
        key = f"reward.custom.{i}.function = {custom.function!r}"
        module, colon, name = custom.function.partition(":")
        if not colon:
            raise UserError(f"{key}: write it as module:function")
        try:
            function = getattr(importlib.import_module(module), name)
        except Exception as e:
            raise UserError(f"{key}: cannot be imported: {type(e).__name__}: {e}") from None
        if not callable(function):
            raise UserError(f"{key}: is {type(function).__name__}, not a function")
        functions[custom.function] = function
    return functions


def parts(reward: Reward, problem: Problem, text: str, call: Callable[[CustomReward], float]) -> dict[str, Any]:
    """Correctness and the built-in terms, weighted. Raises UserError for an unusable reference answer or test."""
    assert reward.style, "config.answer_style gives it"
    text = as_graded(text, reward.style)
    try:
        if problem.domain == "other":
            custom = judge(reward.custom)
            value = call(custom)
            accuracy = Grade(value, "", f"{custom.function}: {value:g}")  # it alone knows what it read of the text
        else:
            accuracy = grade(problem, text, reward.timeout, fraction=reward.fraction)
    except UserError:
        raise
    except Failed as e:
        return {"parts": {}, "errors": [list(e.args)]}
    except Exception as e:
        return {"parts": {}, "errors": [[problem.domain, describe(e)]]}
    terms = {"accuracy": reward.accuracy * accuracy.correct,
             "format": reward.format * well_formed(text, reward.style, strict=reward.strict),
             "language": -reward.language * mixing(problem.prompt, text) if reward.language else 0.0}
    return {"correct": accuracy.correct, "extracted": accuracy.extracted, "reason": accuracy.reason, "parts": terms,
            "errors": []}


def grade(problem: Problem, text: str, timeout: float, *, fraction: bool) -> Grade:
    if problem.domain == "math":
        with bounded_memory(MATH_MEMORY):
            return math_reward.judge(text, problem.answer or "")
    # Within half of the deadline, so that a program that hangs is a wrong answer and not a lost grader.
    wall = min(Limits().wall, timeout / 2)
    limits = Limits(wall=wall, cpu=math.ceil(wall) + 1)
    return code_reward.grade(text, problem.tests or {}, limits, fraction=fraction)


def add_bonuses(reward: Reward, answer: dict[str, Any], call: Callable[[CustomReward], float]) -> None:
    """Add the terms of the user's functions to the answer, or the errors in their place."""
    for custom in reward.custom:
        if custom.role == "bonus":
            try:
                answer["parts"][custom.function] = custom.weight * call(custom)
            except Failed as e:
                answer["errors"].append(list(e.args))


def call_custom(functions: Custom, channel: Connection, problem: Problem, text: str, custom: CustomReward) -> float:
    """What a user's function returns for a response. Raises Failed."""
    send(channel, {"at": custom.function})
    try:
        value = float(functions[custom.function](problem, text))
        if not math.isfinite(value):
            raise ValueError(f"returned {value}")
        if custom.role == "correct" and not 0 <= value <= 1:
            raise ValueError(f"returned {value:g}, which is not from 0 to 1")
    except BaseException as e:  # SystemExit too: a user's function must not end the process
        raise Failed(custom.function, describe(e)) from None
    return value


def describe(error: BaseException) -> str:
    """One line, however much the error has to say."""
    return f"{type(error).__name__}: {' '.join(str(error)[:MAX_ERROR].split())}".removesuffix(": ")


@contextmanager
def bounded_memory(size: int) -> Iterator[None]:
    """Within it the process may map `size` bytes more than it has; then allocations fail. A symbolic expression can
    grow by gigabytes before its deadline."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = [limit for limit in (used + size, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    main()
