"""What models and data say is printed, and neither obeyed nor lost."""

import io

from rich.rule import Rule
from rich.table import Table

from srpo.terminal import Terminal, visible

HOSTILE = "a[b]c[/d] :x: \x1b[2J\x1b]0;mine\x07 \x9b31m \x7f\r\x08end"
SHOWN = "a[b]c[/d] :x: ␛[2J␛]0;mine␇ \ufffd31m ␡␍␈end"


def test_control_characters_become_pictures():
    assert visible(HOSTILE) == SHOWN
    assert visible("two\tlines\n等等 é\n") == "two\tlines\n等等 é\n"


def test_strings_are_printed_as_they_are():
    file = io.StringIO()
    console = Terminal(file=file, width=100)
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(Rule(HOSTILE, align="left"))
    console.print(table)
    assert file.getvalue().count(SHOWN) == 6 and not set(file.getvalue()) & set("\x1b\x07\x9b\r")
