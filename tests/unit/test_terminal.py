"""What models and data say is printed, and neither obeyed nor lost."""

import io
import json
import logging

from rich.rule import Rule
from rich.table import Table

from srpo import errors
from srpo.commands.log import start_log
from srpo.printable import visible, visible_json
from srpo.terminal import Terminal

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


def test_json_keeps_its_value_without_control_characters():
    text = visible_json(json.dumps({HOSTILE: "等等 \x85"}, ensure_ascii=False))
    assert json.loads(text) == {HOSTILE: "等等 \x85"} and "等等" in text
    assert not set(text) & {chr(code) for code in (*range(32), *range(0x7F, 0xA0))}


def test_errors_do_not_act_on_the_terminal(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    errors.report(f"srpo: error: {HOSTILE}")
    assert capsys.readouterr().err == f"srpo: error: {SHOWN}\n"
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == f"srpo: error: {SHOWN}"


def test_neither_does_the_log(capsys):
    loggers = [logging.getLogger(name) for name in ("srpo", "srpo_kernels")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    try:
        start_log()
        loggers[0].warning("prompt %s", HOSTILE)
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
    assert capsys.readouterr().err == f"srpo: prompt {SHOWN}\n"
