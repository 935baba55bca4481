"""Printing on a terminal what models, data files and paths say."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421} | dict.fromkeys(
    range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """With control characters as their pictures: a response that held them could write anywhere on the screen, or set
    the terminal's title and clipboard."""
    return text.translate(_SHOWN)


class Terminal(Console):
    """Prints strings as they are, [brackets] and :names: too, and nothing in them acts on the terminal. Of a Text that
    is made elsewhere, `visible` has to see to that."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)
