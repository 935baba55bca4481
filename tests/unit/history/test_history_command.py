"""What `srpo history` prints, and how it refuses."""

import io
import re
from contextlib import closing

import pytest
from rich.console import Console

from srpo.cli import command
from srpo.control.ledger import Decision, Ledger, RolloutRow, connect
from srpo.errors import UserError
from srpo.history.command import nearest, show


def printed(run, prompt=None, epoch=None, domain=None, limit=10) -> str:
    out = io.StringIO()
    show(run, prompt, epoch, domain, limit, Console(file=out, width=160))
    return out.getvalue()


def table(text: str, title: str) -> list[list[str]]:
    """The cells of one printed table, without its header."""
    lines = text.split(f"{title}", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


@pytest.fixture
def small(tmp_path):
    """Two epochs and a half: `easy` is mastered and leaves, `hard` is never solved, `odd` gets worse."""
    right = {1: {"easy": 4, "hard": 0, "odd": 3}, 2: {"hard": 0, "odd": 1}, 3: {"hard": 0}}
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for epoch, prompts in right.items():
        ledger.append([RolloutRow(epoch, epoch, "s", p, k, "code" if p == "odd" else "math", float(k < n),
                                  float(k < n), 100 * epoch, False) for p, n in prompts.items() for k in range(4)])
        if epoch < 3:
            ledger.close_epoch(epoch, "s", [
                Decision(p, "dropped", "4 of 4 correct", 4) if n == 4 else Decision(p, "kept", f"{n} of 4 correct")
                for p, n in prompts.items()])
    yield tmp_path
    ledger.close()


def test_all_tables(small):
    text = printed(small)
    assert table(text, "Epochs") == [
        ["1", "s", "3", "2", "1", "0", "33.3%", "58.3%", "12", "100"],
        ["2", "s", "2", "2", "0", "0", "50.0%", "12.5%", "8", "200"],
        ["3", "s", "1", "", "", "", "0.0%", "0.0%", "4", "300"]]
    assert "the last epoch is not over" in text
    assert table(text, "Pass rates") == [
        ["1", "33.3%", "0.0%", "0.0%", "33.3%", "0.0%", "33.3%"], ["2", "50.0%", "50.0%", *["0.0%"] * 4],
        ["3", "100.0%", *["0.0%"] * 5]]
    assert table(text, "From a prompt's epoch") == [
        ["1 to 2", "wrong", "1", "1", "0", "0"], ["1 to 2", "mixed", "1", "0", "1", "0"],
        ["2 to 3", "wrong", "1", "1", "0", "0"]]
    assert table(text, "Dropped and returned") == [["1", "1", "dropped", "4 of 4 correct", "epoch 4"]]
    assert table(text, "Never solved: 1") == [["hard", "math", "3", "3", "12"]]
    assert table(text, "Got worse: 1") == [["odd", "code", "1 to 2", "75.0%", "25.0%", "50.0%"]]


def test_a_prompt_by_epoch(small):
    assert table(printed(small, "easy"), "easy (math)") == [
        ["1", "1", "s", "4 of 4", "100.0%", "correct", "1.000", "0.000", "100", "0",
         "dropped: 4 of 4 correct, back in epoch 4"]]
    assert [row[:6] for row in table(printed(small, "odd"), "odd (code)")] == [
        ["1", "1", "s", "3 of 4", "75.0%", "mixed"], ["2", "2", "s", "1 of 4", "25.0%", "mixed"]]


def test_epochs_without_a_prompt_still_say_what_was_decided(tmp_path):
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        ledger.decide(0, [Decision("away", "dropped", "pass rate 1.00", 2)])
        ledger.append([RolloutRow(1, 1, "s", "b", 0, "math", 0.0, 0.0, 5, False)], unused=["b"])
        ledger.close_epoch(1, "s", [Decision("b", "kept", "0 of 1 correct"), Decision("away", "returned", "because")])
        assert [[r[0], r[-1]] for r in table(printed(tmp_path, "away"), "away")] == [
            ["0", "dropped: pass rate 1.00, back in epoch 2"], ["1", "returned: because"]]
        assert table(printed(tmp_path, "b"), "b (math)")[0][-1] == "kept: 0 of 1 correct (not trained on)"
        assert table(printed(tmp_path), "Dropped and returned") == [
            ["at the start", "1", "dropped", "pass rate 1.00", "epoch 2"], ["1", "1", "returned", "because", ""]]


def test_one_epoch_of_one_domain(small):
    text = printed(small, epoch=2, domain="math")
    assert table(text, "Epochs") == [["2", "s", "1", "1", "0", "0", "0.0%", "0.0%", "4", "200"]]
    assert table(text, "From a prompt's epoch") == [["1 to 2", "wrong", "1", "1", "0", "0"]]
    assert "Got worse" not in text and "Dropped" not in text
    assert table(printed(small, domain="math"), "Epochs")[0][2:6] == ["2", "1", "1", "0"]


def test_the_numbers_are_the_views(run):
    """Of a run with returned prompts and several stages."""
    with closing(connect(run)) as db:
        text = printed(run, limit=1000)
        retention = db.execute("SELECT epoch, stage, prompts, kept, dropped, returned FROM retention").fetchall()
        assert [row[:6] for row in table(text, "Epochs")] == [list(map(str, row)) for row in retention]
        assert len(table(text, "Never solved")) == len(db.execute("SELECT * FROM unsolved").fetchall())
        assert len(table(text, "Got worse")) == len(db.execute("SELECT * FROM regressed").fetchall())
        moves = sum(int(row[2]) for row in table(text, "From a prompt's epoch"))
        assert moves == db.execute("SELECT SUM(prompts) FROM flow").fetchone()[0]


def test_limit(run):
    text = printed(run, limit=2)
    total = int(re.search(r"Got worse: (\d+)", text)[1])
    assert len(table(text, "Got worse")) == 2 and f"the first 2 of {total}; --limit shows more" in text
    worse = table(printed(run, limit=1000), "Got worse")
    falls = [float(row[-1].rstrip("%")) for row in worse]
    assert table(text, "Got worse") == worse[:2] and falls == sorted(falls, reverse=True) and falls[0] > falls[-1]
    assert len(table(text, "Epochs")) == 5


@pytest.mark.parametrize(("arguments", "says"), [
    (["--prompt", "odds"], "no such prompt; did you mean odd?"), (["--epoch", "7"], "the ledger has epochs 1 to 3"),
    (["--domain", "maths"], "the ledger has code, math"), (["--export", "x.txt"], "give a folder, a FILE.csv or"),
    (["--export", "out", "--epoch", "1"], "a folder gets every table whole"),
])
def test_errors(small, capsys, arguments, says):
    assert command(["history", str(small), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_no_ledger_and_an_empty_one(tmp_path, capsys):
    assert command(["history", str(tmp_path)]) == 2
    assert "there is no" in capsys.readouterr().err
    with closing(Ledger(tmp_path / "ledger.sqlite")), pytest.raises(UserError, match="holds no rollouts yet"):
        printed(tmp_path)


def test_ids_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        ledger.append([RolloutRow(1, 1, "s", p, 0, "math", 0.0, 0.0, 9, False) for p in ("a[b]c", "a[/b]c")])
    assert command(["history", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "a[b]c" in text and "a[/b]c" in text
    assert command(["history", str(tmp_path), "--prompt", "a[/b]c"]) == 0
    assert "a[/b]c (math)" in capsys.readouterr().out


def test_export_from_the_command_line(small, tmp_path, capsys):
    assert command(["history", str(small), "--export", str(tmp_path / "t.csv"), "--table", "steps"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 't.csv'}: 3 rows\n"
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("wrong", ["math-0124", "mth-0123", "math-01233", "math-01x3", "MATH-0123"])
def test_the_nearest_id(wrong):
    assert nearest(wrong, ["code-0123", "math-0999", "math-0123", "math-9", "other"]) == "math-0123"
