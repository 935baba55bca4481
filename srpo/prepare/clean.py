r"""Noise removed from prompts and answers: what a web page, a scraper or another trainer's template left there.

Every cleaner is a function from text to text, with examples of (before, after); they run in this order.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from srpo.prepare.rows import Row


@dataclass(frozen=True)
class Cleaner:
    name: str
    clean: Callable[[str], str]
    examples: tuple[tuple[str, str], ...]


CLEANERS: list[Cleaner] = []
"""Of prompts, in order."""


def cleaner(*examples: tuple[str, str]) -> Callable[[Callable[[str], str]], Callable[[str], str]]:
    def register(function: Callable[[str], str]) -> Callable[[str], str]:
        CLEANERS.append(Cleaner(function.__name__, function, examples))
        return function

    return register


def clean(row: Row) -> Row:
    """The row with a clean prompt and answer. Code blocks are left as they are."""
    # Half a surrogate pair is no character: neither Parquet nor a tokenizer takes it.
    whole: dict[str, Any] = {name: re.sub("[\ud800-\udfff]", "", value)
                             for name, value in vars(row).items() if isinstance(value, str)}
    row = replace(row, **whole)
    parts = re.split(r"(```.*?```)", row.prompt, flags=re.DOTALL)
    prompt = "".join(part if part.startswith("```") else _apply(part) for part in parts).strip()
    solution = row.solution and row.solution.removeprefix("\ufeff").replace("\r\n", "\n")
    return replace(row, prompt=prompt, solution=solution,
                   answer=clean_answer(row.answer) if row.answer else row.answer)


def _apply(text: str) -> str:
    for c in CLEANERS:
        text = c.clean(text)
    return text


@cleaner(("a\u00a0b", "a b"), ("x\u200b = 1\ufeff", "x = 1"), ("cafe\u0301", "café"), ("a\r\nb\rc", "a\nb\nc"),
         ("tab\tstays", "tab\tstays"), ("bell\x07", "bell"), ("½ cup, x²", "½ cup, x²"))
def characters(text: str) -> str:
    """One spelling of accents, line ends and spaces; no invisible characters. Compatibility forms (², ½) stay."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub(r"[\u00a0\u2000-\u200a\u202f\u205f\u3000]", " ", text)
    return re.sub(r"[\u200b-\u200f\u2060\ufeff\u00ad\x00-\x08\x0b-\x1f\x7f]", "", text)


@cleaner(("<p>Find <b>x</b>.</p>", "Find x."), ("a<br/>b", "a\nb"), ("3 &lt; 4 &amp; 5", "3 < 4 & 5"),
         ("if a<b and c>d", "if a<b and c>d"), ("x<p and q>r", "x<p and q>r"), ("2<sup>10</sup>", "2^{10}"),
         ("<svg>", "<svg>"), ("a_<sub>1</sub>", "a__{1}"))
def markup(text: str) -> str:
    """HTML tags that only format, and entities. Powers and indices keep their meaning."""
    text = re.sub(r"<br\s*/?>", "\n", text)
    text = re.sub(r"<sup>(.*?)</sup>", r"^{\1}", text)
    text = re.sub(r"<sub>(.*?)</sub>", r"_{\1}", text)
    for tag in ("p", "b", "i", "em", "strong", "span", "div", "u", "font"):
        text = re.sub(rf"<{tag}(?: [^<>]*)?>(.*?)</{tag}>", r"\1", text, flags=re.DOTALL)
    return html.unescape(text) if re.search(r"&(?:lt|gt|amp|quot|nbsp|#\d+);", text) else text


@cleaner(("See [the rules](https://x.org/a).", "See the rules."), ("Find x. https://x.org/p?id=1", "Find x."),
         ("Find x (source: http://x.org).", "Find x."), ('valid("http://a.b") is True', 'valid("http://a.b") is True'),
         ("Input: `www.a.org`", "Input: `www.a.org`"), ("![](https://x.org/a.png) Find x.", "![](image) Find x."),
         ("[link](https:// [link](https://))Find x.", "Find x."))
def urls(text: str) -> str:
    """Web addresses, except quoted ones, which are data. Of an embedded image the mark stays, for `needs_image`."""
    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"![\1](image)", text)
    text = re.sub(r"(?:\[[^\]]*\]\(https?://\s*)+\)+", "", text)  # links to nowhere, nested by an editor
    text = re.sub(r"\[([^\]]+)\]\(https?://[^)]*\)", r"\1", text)
    text = re.sub(r"\s*\((?:source|see|from|via):?\s*(?:https?://|www\.)[^\s)]*\)", "", text, flags=re.IGNORECASE)
    return re.sub(r"\s*(?<![\"'`/\w])(?:https?://|www\.)[^\s\"'`<>)]*[^\s\"'`<>).,;:?!]", "", text)


@cleaner(("12. Find the sum.", "Find the sum."), ("Problem 7: Find x.", "Find x."), ("1.5 is half.", "1.5 is half."),
         ("(AIME 2003 Problem 4) Find x.", "Find x."), ("Find x. [5 points]", "Find x."),
         ("Exercise 3. Find x.", "Find x."), ("(10 points) Find x.", "Find x."),
         ("She scored (10 points more) again.", "She scored (10 points more) again."),
         ("12. 4 and 5 are added.", "12. 4 and 5 are added."), ("Question: What is 2+2?", "What is 2+2?"),
         ("The team has 10 points. Find x.", "The team has 10 points. Find x."))
def numbering(text: str) -> str:
    """A problem's number, its contest and its worth in points."""
    number = r"(?:Problem|Exercise|Example|Question)\s*(?:\d+\s*[.:)]|:)|\d{1,3}\.(?= +[A-Z])"
    points = r"[(\[]\d+ (?:points?|marks?|pts)[)\]]"
    text = re.sub(rf"^\s*(?:{number})\s*", "", text)
    text = re.sub(r"^\s*\((?:AMC|AIME|HMMT|IMO|USAMO|AHSME)\b[^()]*\)\s*", "", text)
    return re.sub(rf"\s*{points}\s*(?=$|\n)|^\s*{points}\s*", "", text)


@cleaner(("## Find x.", "Find x."), ("#include is C's.", "#include is C's."), ("Sort it. > indented block", "Sort it."))
def notebook(text: str) -> str:
    """A heading's mark at the beginning, and what an editor of notebooks leaves."""
    return re.sub(r"\s*> indented block\b", "", re.sub(r"^\s*#{1,6}\s+(?=\w)", "", text))


@cleaner(('Find x. Let\'s think step by step and output the final answer after "####".', "Find x."),
         ("Find x.\nPlease reason step by step, and put your final answer within \\boxed{}.", "Find x."),
         ("Find x. Put the answer to part one within the box.", "Find x. Put the answer to part one within the box."))
def instructions(text: str) -> str:
    """Another trainer's instruction on how to answer, at the end; data.template gives ours."""
    return re.sub(r"\s*(?:Let's think step by step|Please reason step by step|Present the answer)[^\n]*"
                  r"(?:####|\\boxed)[^\n]*$", "", text)


@cleaner(("a  \n\n\n\nb", "a\n\nb"), ("a   b", "a   b"), ("  x = 1\n", "  x = 1\n"))
def blank_lines(text: str) -> str:
    """Trailing blanks and runs of empty lines; indentation is code's."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text))


ANSWERS = ((" $\\frac{1}{2}$ ", "\\frac{1}{2}"), ("\\boxed{5}", "5"), ("\\( 7 \\)", "7"), ("12.", "12"),
           ("The answer is 4.", "4"), ("$5", "$5"), ("$3$ and $4$", "$3$ and $4$"), ("4.50", "4.50"),
           ("\\$18.90", "\\$18.90"))
"""(before, after) of `clean_answer`."""


def clean_answer(answer: str) -> str:
    """The bare answer: no box, dollar signs, sentence around it, or full stop."""
    answer = characters(answer).strip()
    answer = re.sub(r"^(?:the (?:final )?answer is:?|answer:)\s*", "", answer, flags=re.IGNORECASE)
    answer = answer.removesuffix(".").strip()
    for pattern in (r"\\boxed\s*\{(.*)\}", r"\$\$([^$]+)\$\$", r"\$([^$]+)\$", r"\\\((.*)\\\)", r"\\\[(.*)\\\]"):
        if found := re.fullmatch(pattern, answer, re.DOTALL):
            answer = found.group(1).strip()
    return answer
