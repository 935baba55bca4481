"""Does the program in a response pass its tests? It runs in srpo.sandbox."""

from __future__ import annotations

import re
from typing import Any

from srpo.rewards.extract import Grade, answer_block, conclusion
from srpo.sandbox import Limits, judge

_FENCED = re.compile(r"(?:^|<answer>)[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def grade(response: str, tests: dict[str, Any], limits: Limits | None = None) -> Grade:
    """All tests or nothing. Raises UserError when the tests are unusable (srpo.sandbox.judge)."""
    program = extract(response)
    if program is None:
        return Grade(0.0, None, "no program")
    verdict = judge(program, tests, limits=limits or Limits())
    return Grade(float(verdict.passed == verdict.total), program, verdict.reason)


def extract(response: str) -> str | None:
    """The last fenced block after the thinking; without one, the content of <answer>."""
    text = conclusion(response)
    fenced = _FENCED.findall(text)
    program = fenced[-1] if fenced else answer_block(text)
    return program.strip("\n") if program and program.strip() else None
