"""Where the final answer is in a response. Linear in its length, whatever the text."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_ANSWER = 300
"""Characters; a longer final answer is no answer."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Grade:
    """`correct` in [0, 1]; `extracted` is the answer or program that was judged, None when there was none."""

    correct: float
    extracted: str | None
    reason: str


def conclusion(response: str) -> str:
    """What follows the thinking: the text after the last </think>, all of it without one, nothing while a <think>
    is still open."""
    _, closed, after = response.rpartition("</think>")
    return after if closed else "" if "<think>" in response else response


def answer_block(text: str) -> str | None:
    """Content of the last <answer>...</answer>."""
    blocks = _ANSWER.findall(text)
    return blocks[-1] if blocks else None


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of the outermost \boxed{} and \fbox{} in the last 4,000 characters, in order. An
    unbalanced or overlong one has no content: it counts as empty."""
    text = text[-4000:]
    found: list[tuple[int, int, str]] = []
    for match in _BOX.finditer(text):
        if found and match.start() < found[-1][1]:
            continue                                          # inside the one before
        end = _closing(text, match.end())
        found.append((match.start(), end, text[match.end():end - 1]) if end else (match.start(), match.end(), ""))
    return found


def _closing(text: str, start: int) -> int:
    """Just after the brace that closes the group open at `start`; 0 when there is none near enough."""
    depth, i = 1, start
    limit = min(len(text), start + 4 * MAX_ANSWER)
    while i < limit:
        if text[i] == "\\":
            i += 1
        elif text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return 0
