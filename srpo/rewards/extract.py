"""Where the final answer is in a response. Linear in its length, whatever the text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from srpo.config import Style

MAX_ANSWER = 300
"""Characters; a longer final answer is no answer."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_FENCE = re.compile(r"(?:.*<answer>)?([ \t]*)(`{3,}|~{3,})(.*)")
_LANGUAGE = re.compile(r"\w[\w+#.-]*")


@dataclass(frozen=True)
class Grade:
    """`correct` in [0, 1]; `extracted` is the answer or program that was judged, None when there was none."""

    correct: float
    extracted: str | None
    reason: str


def as_graded(response: str, style: Style) -> str:
    """With the <think> that the prompt of style think_answer ended with."""
    return "<think>" + response if style == "think_answer" and "<think>" not in response else response


def conclusion(response: str) -> str:
    """What follows the thinking: the text after the last </think>, all of it without one, nothing while a <think>
    is still open."""
    _, closed, after = response.rpartition("</think>")
    return after if closed else "" if "<think>" in response else response


def answer_block(text: str) -> str | None:
    """Content of the last <answer>...</answer>."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    return text[start + len("<answer>"):text.index("</answer>", start)] if start >= 0 else None


def fenced_block(text: str) -> str | None:
    """Content of the last closed fenced block, as CommonMark has it: of backticks or tildes, closed by at least as many
    at most three columns further in, and dedented by its fence. One departure: where a fence with a language stands in
    an open block, that block was left open by mistake."""
    last: list[str] | None = None
    opened, content, width = "", [], 0
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if fence is None or not fence[2].startswith(opened) or opened and len(fence[1].expandtabs(4)) > width + 3:
            content.append(line[min(width, len(line) - len(line.lstrip(" \t"))):])
        elif opened and not _LANGUAGE.fullmatch(fence[3].strip()):
            last, content, opened, width = content, [], "", 0
        elif "`" not in fence[3]:
            opened, content, width = fence[2], [], len(fence[1])
    return None if last is None else "\n".join(last)


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
