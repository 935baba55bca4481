"""Printing on a terminal what models, data files and paths say."""

from __future__ import annotations

from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from srpo.printable import visible


class Terminal(Console):
    """Prints strings as they are, [brackets] and :names: too, and nothing in them acts on the terminal. Of a Text that
    is made elsewhere, `visible` has to see to that."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        raise  # rich calls this while it handles the error, and would end the process itself; srpo/cli.py does
