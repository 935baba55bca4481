"""The file of behaviour patterns: read, checked, and its keywords made into regular expressions.

Regular expressions are RE2's, as pyarrow has it: linear in the text, whatever a user writes, and a hundred times as
fast as Python's over many alternatives.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from srpo import yaml12
from srpo.config import Section
from srpo.errors import UserError

DEFAULT = Path(__file__).with_name("patterns.yaml")

KINDS = ("keywords", "after_answer", "repeated", "mixing")
"""Of which a pattern has exactly one; patterns.yaml explains them."""


class Pattern(Section):
    about: str
    """What it is, in words."""
    domains: list[str] | None = Field(None, min_length=1)
    """Only in responses to problems of these."""
    keywords: list[str] | None = Field(None, min_length=1)
    after_answer: list[str] | None = Field(None, min_length=1)
    repeated: float | None = Field(None, gt=0, le=1)
    mixing: float | None = Field(None, gt=0, le=1)


class Patterns:
    """`patterns` by name, in the file's order; `expressions`: the RE2 of every keyword of a pattern."""

    def __init__(self, patterns: dict[str, Pattern], file: Path):
        self.patterns = patterns
        self.file = file
        self.expressions = {name: {k: expression(k) for k in keywords} for name in patterns
                            if (keywords := self.keywords(name))}

    @classmethod
    def load(cls, file: str | Path = DEFAULT) -> Patterns:
        """Raises UserError naming the file and the key."""
        file = Path(file)
        patterns = {}
        tree = yaml12.read(file, f"no such file of patterns; {DEFAULT} is one to copy", "a mapping of patterns by name")
        for name, entry in tree.items():
            try:
                patterns[str(name)] = pattern = Pattern.model_validate(entry)
            except ValidationError as e:
                error = e.errors()[0]
                key = ".".join(map(str, (name, *error["loc"])))
                raise UserError(f"{file}: {key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
                                ) from None
            if len([kind for kind in KINDS if getattr(pattern, kind) is not None]) != 1:
                raise UserError(f"{file}: {name}: needs one of {', '.join(KINDS)}, and one alone")
            for place, keyword in enumerate(pattern.keywords or []):
                _check(f"{file}: {name}.keywords.{place} = {keyword!r}", keyword)
            for place, other in enumerate(pattern.after_answer or []):
                if other not in patterns or patterns[other].keywords is None:
                    raise UserError(f"{file}: {name}.after_answer.{place} = {other!r}: is no pattern with keywords "
                                    "above this one")
        return cls(patterns, file)

    def keywords(self, name: str) -> list[str]:
        """A pattern's own, or those that it looks for after the answer."""
        pattern = self.patterns[name]
        others = [k for other in pattern.after_answer or [] for k in self.patterns[other].keywords or []]
        return [*(pattern.keywords or []), *others]


def expression(keyword: str) -> str:
    """RE2 of a keyword, with flags; see patterns.yaml for what is added to it."""
    inner = _inner(keyword)
    before = r"\b" if _letter(keyword[:1]) else ""
    after = r"\b" if _letter(keyword[-1:]) and keyword[-2:-1] != "\\" else ""
    return f"(?im:{before}(?:{inner}){after})"


def _inner(keyword: str) -> str:
    return keyword.replace(" ", r"\s+").replace("'", "['\u2019]")


def any_of(expressions: dict[str, str]) -> str:
    return "|".join(expressions.values())


def _letter(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _check(where: str, keyword: str) -> None:
    nothing, inner = pa.array([""]), f"(?im:{_inner(keyword)})"
    try:
        if pc.match_substring_regex(nothing, inner)[0].as_py():
            raise UserError(f"{where}: matches the empty text, and so everything; say what has to be there")
    except pa.ArrowInvalid as e:
        reason = str(e).removeprefix("Invalid regular expression: ").split(": ")[0]
        raise UserError(f"{where}: not a regular expression that RE2 knows: {reason}; RE2 has no look-around and no "
                        "references back") from None
    try:  # as examples.py finds the place of a match, by a group of its own
        captures = pc.extract_regex_span(nothing, f"(?P<m>{inner})").type.num_fields > 1
    except pa.ArrowInvalid:  # which knows no groups without a name
        captures = True
    if captures:
        raise UserError(f"{where}: has a group that captures; write (?:...) in place of (...)")
