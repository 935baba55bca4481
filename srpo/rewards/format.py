r"""Is a response well-formed? The SRPO template wants <think></think> <answer></answer>; the other style, \boxed{}."""

from __future__ import annotations

import re

from srpo.config import Config, Style, answer_style
from srpo.rewards.extract import boxes, conclusion

_THINK_ANSWER = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def well_formed(response: str, style: Style, *, strict: bool = True) -> bool:
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


def unanswered(config: Config) -> str:
    """What to say of a step in which the graders found no answer to judge, in any response."""
    style, template = answer_style(config.reward.style, config.data.template), config.data.template
    place = "after </think>" if style == "think_answer" else "in a last \\boxed{} or a code block"
    return (f"no response has a final answer, so none is correct. With reward.style = {style!r} it is looked for "
            f"{place}; data.template = {template!r}. Read the responses in {config.run}/samples; if they answer "
            "elsewhere, set reward.style to the other one, or have the prompts say where the answer goes")
