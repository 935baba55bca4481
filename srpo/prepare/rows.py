"""A row on its way to become a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Row:
    """`solution` is a maths problem's worked text or a code problem's program; `where` is the file and line."""

    id: str
    domain: str
    prompt: str
    answer: str | None = None
    tests: dict[str, Any] | None = None
    solution: str | None = None
    source: str = ""
    where: str = ""
