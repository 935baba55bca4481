"""The verdict on a program: runs its tests on this side and compares what comes back.

Three kinds of tests:
  {"kind": "function", "entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]}
  {"kind": "stdio", "cases": [{"input": "1 2\n", "output": "3"}]}
  {"kind": "assert", "entry_point": "add", "code": "assert add(1, 2) == 3"}
"""

from __future__ import annotations

import ast
import atexit
import builtins
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cache, partial
from queue import SimpleQueue
from typing import Any

from srpo.errors import UserError
from srpo.sandbox import wire
from srpo.sandbox.isolation import strongest
from srpo.sandbox.process import Limits, Program, Raised, Sandbox, Stopped


@dataclass(frozen=True)
class Verdict:
    """`passed` of `total` cases; `reason` says what the first failure was, in a printable line; `seconds` of wall
    time."""

    passed: int
    total: int
    reason: str
    seconds: float


_DEFAULT = Limits()
_MAX_REASON = 300
"""Characters; programs and tests choose what most of them say."""


def judge(program: str, tests: dict[str, Any], *, limits: Limits = _DEFAULT) -> Verdict:
    """Run a program against its tests in this process's warm sandbox, which serves one caller at a time.

    Assert-style code is trusted and runs here, its entry point bound to a proxy that calls the program.
    Raises UserError when the tests themselves are unusable: unknown kind, missing field, no case at all; OSError when
    the host failed the sandbox, which says nothing about the program.
    """
    return _judge(_warm(), program, tests, limits)


def judge_many(items: Sequence[tuple[str, dict[str, Any]]], *, limits: Limits = _DEFAULT,
               workers: int = 2) -> list[Verdict]:
    """`judge` for (program, tests) pairs, on several sandboxes at once; verdicts in the items' order."""
    free: SimpleQueue[Sandbox] = SimpleQueue()

    def one(item: tuple[str, dict[str, Any]]) -> Verdict:
        sandbox = free.get()
        try:
            return _judge(sandbox, *item, limits)
        finally:
            free.put(sandbox)

    with ExitStack() as stack:
        for _ in range(min(workers, len(items))):
            free.put(stack.enter_context(closing(Sandbox(strongest()))))
        return list(stack.enter_context(ThreadPoolExecutor(workers)).map(one, items))


def check(tests: dict[str, Any]) -> None:
    """Raise UserError when tests are unusable, as `judge` would; runs nothing."""
    _plan(tests)


@cache
def _warm() -> Sandbox:
    sandbox = Sandbox(strongest())
    atexit.register(sandbox.close)
    return sandbox


def _forget() -> None:
    """A forked process starts a sandbox of its own: two that talk to one would get each other's answers."""
    if _warm.cache_info().currsize:
        atexit.unregister(_warm().close)
        _warm.cache_clear()


os.register_at_fork(after_in_child=_forget)


def _judge(sandbox: Sandbox, program: str, tests: dict[str, Any], limits: Limits) -> Verdict:
    run, total = _plan(tests)
    with sandbox.turn:
        started = time.monotonic()
        passed, reason = run(sandbox, program, limits)
        return Verdict(passed, total, reason, time.monotonic() - started)


_Run = Callable[[Sandbox, str, Limits], tuple[int, str]]


def _plan(tests: dict[str, Any]) -> tuple[_Run, int]:
    """How to run these tests, and how many there are."""
    kind = tests.get("kind")
    fields = {"function": ("entry_point", "cases"), "stdio": ("cases",), "assert": ("entry_point", "code")}
    if not isinstance(kind, str) or kind not in fields:
        raise UserError(f"tests.kind = {kind!r}: choose one of {', '.join(fields)}")
    for field in fields[kind]:
        if not tests.get(field):
            raise UserError(f"tests.{field}: missing or empty in tests of kind {kind!r}")
        _typed(f"tests.{field}", tests[field], list if field == "cases" else str)
    if kind == "assert":
        statements = _statements(tests["code"])
        total = max(sum(isinstance(s, ast.Assert) for s in statements), 1)
        return partial(_run_asserts, tests["entry_point"], statements, total), total
    cases = tests["cases"]
    types = {"args": list, "expected": object} if kind == "function" else {"input": str, "output": str}
    for i, case in enumerate(cases):
        _typed(f"tests.cases.{i}", case, dict)
        for field, expected in types.items():
            if field not in case:
                raise UserError(f"tests.cases.{i}.{field}: missing in tests of kind {kind!r}")
            _typed(f"tests.cases.{i}.{field}", case[field], expected)
        _typed(f"tests.cases.{i}.kwargs", case.get("kwargs", {}), dict)
        try:
            wire.encode([case.get("args"), case.get("kwargs")], math.inf)
        except wire.Unsupported as e:
            raise UserError(f"tests.cases.{i}.args: {e}") from None
    if kind == "stdio":
        return partial(_run_stdio, cases), len(cases)
    return partial(_run_function, tests["entry_point"], cases), len(cases)


def _typed(key: str, value: Any, expected: type) -> None:
    if not isinstance(value, expected):
        raise UserError(f"{key}: must be {expected.__name__}, found {type(value).__name__}")


def _statements(code: str) -> list[ast.stmt]:
    try:
        tree = ast.parse(code)
    except SyntaxError as e:
        raise UserError(f"tests.code: line {e.lineno}: {e.msg}") from None
    except ValueError as e:  # a null byte
        raise UserError(f"tests.code: {e}") from None
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise UserError("tests.code: contains no assert")
    return tree.body


# -- one runner a kind: how many cases passed, and the first failure ------------------------------------------------


def _run_function(name: str, cases: Sequence[dict[str, Any]], sandbox: Sandbox, code: str,
                  limits: Limits) -> tuple[int, str]:
    passed, reason = 0, ""
    with Program(sandbox, code, limits) as program:
        try:
            program.load()
        except (Raised, Stopped) as e:
            return 0, _describe(e)
        for i, case in enumerate(cases):
            try:
                good = matches(program.call(name, case["args"], case.get("kwargs", {})), case["expected"])
                why = "" if good else "wrong answer"
            except (Raised, Stopped) as e:
                why = _describe(e)
            passed += not why
            reason = reason or (why and f"case {i}: {why}")
            if program.stopped:
                break
    return passed, reason or "passed"


def _run_stdio(cases: Sequence[dict[str, str]], sandbox: Sandbox, code: str, limits: Limits) -> tuple[int, str]:
    passed, reason = 0, ""
    deadline = time.monotonic() + limits.wall
    for i, case in enumerate(cases):
        left = replace(limits, wall=deadline - time.monotonic())
        try:
            with Program(sandbox, code, left, input=case["input"]) as program:
                program.load()
                why = "" if _lines(program.output()) == _lines(case["output"]) else "wrong output"
        except (Raised, Stopped) as e:
            why = _describe(e)
        passed += not why
        reason = reason or (why and f"case {i}: {why}")
        if time.monotonic() >= deadline:
            break
    return passed, reason or "passed"


def _run_asserts(name: str, statements: Sequence[ast.stmt], total: int, sandbox: Sandbox, code: str,
                 limits: Limits) -> tuple[int, str]:
    """Each top-level assert is a case; code whose asserts are all nested (in functions, loops) is one case."""
    failures: list[str] = []
    with Program(sandbox, code, limits) as program:
        try:
            program.load()
        except (Raised, Stopped) as e:
            return 0, _describe(e)
        scope = {"__name__": "tests", name: _proxy(program, name)}
        for statement in statements:
            try:
                exec(compile(ast.Module([statement], []), "tests", "exec"), scope)
            except (Exception, SystemExit) as e:  # whatever the tests raise fails the program
                why = "assertion failed" if isinstance(e, AssertionError) else _describe(e)
                failures.append(f"line {statement.lineno}: {why}")
                if not isinstance(statement, ast.Assert):     # what follows may depend on it
                    return 0, failures[0]
        if program.stopped:                                   # the tests' code may have swallowed it
            return 0, program.stopped
    return total - len(failures), failures[0] if failures else "passed"


def _proxy(program: Program, name: str) -> Callable[..., Any]:
    """The program's function as the tests see it. An exception of a builtin type is raised again as that type, for
    tests that expect one. Not AssertionError, being the tests' own verdict, nor StopIteration, which would end a loop
    over results, as in `all(map(f, inputs))`, before any was wrong."""

    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            return program.call(name, args, kwargs)
        except Raised as e:
            kind = getattr(builtins, e.args[0], None)
            if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (AssertionError, StopIteration):
                raise kind.__new__(kind, e.args[1]) from None  # some cannot be called with a text alone
            raise

    function.__name__ = name
    return function


# -- comparison -----------------------------------------------------------------------------------------------------


def matches(value: Any, expected: Any) -> bool:
    """Equality of plain data. A tuple may stand for the list that JSON writes; True is not 1; floats agree to 1e-9."""
    if isinstance(value, float) or isinstance(expected, float):
        numbers = type(value) in (int, float) and type(expected) in (int, float)
        return numbers and (value == expected or _close(value, expected))
    if type(value) in (list, tuple) and type(expected) in (list, tuple):
        return len(value) == len(expected) and all(map(matches, value, expected))
    if type(value) is not type(expected):
        return False
    if type(value) is dict:
        return value.keys() == expected.keys() and all(matches(value[k], expected[k]) for k in expected)
    return bool(value == expected)


def _close(a: float, b: float) -> bool:
    try:
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    except OverflowError:                                     # an integer beyond any float
        return False


def _lines(text: str) -> list[str]:
    """Lines without trailing blanks, without blank lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _describe(e: BaseException) -> str:
    if isinstance(e, Raised):
        text = ": ".join(a for a in e.args if a)
    else:
        text = str(e) if isinstance(e, Stopped) else f"{type(e).__name__}: {e}"
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_REASON])
