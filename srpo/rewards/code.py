"""Does the program in a response pass its tests? It runs in srpo.sandbox."""

from __future__ import annotations

from typing import Any

from srpo.rewards.extract import Grade, answer_block, conclusion, fenced_block
from srpo.sandbox import Limits, judge


def grade(response: str, tests: dict[str, Any], limits: Limits | None = None, *, fraction: bool = False) -> Grade:
    """All tests or nothing, or the fraction of them that pass. Raises UserError when the tests are unusable and OSError
    when the host failed the sandbox (srpo.sandbox.judge)."""
    program = extract(response)
    if program is None:
        return Grade(0.0, None, "no program")
    verdict = judge(program, tests, limits=limits or Limits())
    passed = verdict.passed / verdict.total
    return Grade(passed if fraction else float(passed == 1), program, verdict.reason)


def extract(response: str) -> str | None:
    """The last fenced block after the thinking; without one, the content of <answer>."""
    text = conclusion(response)
    fenced = fenced_block(text)
    program = answer_block(text) if fenced is None else fenced
    return program.strip("\n") if program and program.strip() else None
