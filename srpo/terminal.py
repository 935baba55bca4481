"""Printing on a terminal what models, data files and paths say."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
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


def wide() -> Terminal:
    """For tables, which a narrower terminal, or none, would cut."""
    return Terminal(width=max(120, Console().width))


def new_table(title: str | None, *columns: str, text: Collection[str] = (), **options: Any) -> Table:
    """Columns of numbers, set to the right, but for those of `text`; `options` are rich's."""
    table = Table(title=title, **options)
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right")
    return table


def counting(console: Console, disable: bool = False) -> Progress:
    """Bars that say how many of how many, and how long it will take."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                    TimeRemainingColumn(), console=console, disable=disable)
