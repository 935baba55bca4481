"""What a rule is: a small named predicate that says which rows go, with examples of what it keeps and what it drops.

An example is a prompt, or a dict of a row's fields; tests/unit/prepare runs every rule over its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from srpo.prepare.rows import Row

Example = str | dict[str, Any]


@dataclass(frozen=True)
class Rule:
    name: str
    domain: str
    drops: Callable[[Row], bool]
    kept: tuple[Example, ...]
    dropped: tuple[Example, ...]


def rule(domain: str, *, keeps: Iterable[Example], drops: Iterable[Example]) -> Callable[[Callable[[Row], bool]], Rule]:
    """Make a rule of a function; its name is the function's."""
    return lambda function: Rule(function.__name__, domain, function, tuple(keeps), tuple(drops))
