r"""Is a response well-formed? The SRPO template wants <think></think> <answer></answer>; the other style, \boxed{}."""

from __future__ import annotations

import re
from typing import Literal

from srpo.rewards.extract import boxes, conclusion

_THINK_ANSWER = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def well_formed(response: str, style: Literal["think_answer", "boxed"], *, strict: bool = True) -> bool:
    r"""think_answer: some thinking, then an answer, each tag once and nothing around them; the opening <think> may be
    in the prompt instead. boxed: the conclusion holds a balanced, non-empty \boxed{}, and nothing else is boxed there.

    Not strict: there is an answer after the thinking, whatever else is written; <answer> may be left open at the end.
    """
    after = conclusion(response)
    if style == "boxed":
        found = boxes(after)
        return bool(found and found[-1][2].strip()) and (len(found) == 1 or not strict)
    if not strict:
        _, opened, answer = after.rpartition("<answer>")
        return "</think>" in response and bool(opened and answer.partition("</answer>")[0].strip())
    once = [response.count(tag) for tag in ("</think>", "<answer>", "</answer>")] == [1, 1, 1]
    if not once or response.count("<think>") > 1:             # checked first, it bounds the pattern's backtracking
        return False
    match = _THINK_ANSWER.fullmatch(response)
    return match is not None and all(part.strip() and "<think>" not in part for part in match.groups())
