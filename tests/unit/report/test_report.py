"""The report without a browser: its size, what it escapes, and runs that lack something."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import synthetic
from test_figures import embedded

from srpo.cli import command
from srpo.control.ledger import Ledger
from srpo.errors import UserError
from srpo.report import collect, responses, series
from srpo.report.page import page

SMALL = synthetic.Shape(steps=8, stage_at=4, per_epoch=2, stored=4)


class Elements(HTMLParser):
    """What a browser would take for an element, and what it would fetch."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "data") and value]


def test_one_file_that_fetches_nothing(tmp_path, capsys):
    run = synthetic.write(tmp_path / "run", SMALL)
    assert command(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert "page.html: " in capsys.readouterr().out
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert Elements(html).fetched == []
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy
    assert html.isascii() or "</html>" in html


def test_its_place_when_none_is_given(tmp_path):
    run = synthetic.write(tmp_path / "run", SMALL)
    assert command(["report", str(run)]) == 0
    assert (run / "report.html").is_file()


def test_hostile_responses_stay_text(tmp_path):
    run = synthetic.write(tmp_path / "run", SMALL, responses=synthetic.HOSTILE)
    plain = synthetic.write(tmp_path / "plain", SMALL)
    html = page(collect.collect([run]))
    assert Elements(html).tags == Elements(page(collect.collect([plain]))).tags
    data = embedded(html)
    assert data.isascii() and "<" not in data
    rows = json.loads(data)["runs"][0]["responses"]["rows"]
    texts = {row[responses.FIELDS.index("response")] for row in rows}
    assert {"</script><script>document.title='owned'</script>", "a\u2028b\u2029c"} <= texts


def test_a_lone_surrogate_is_escaped():
    name = "\ud800</script>"
    report = {"version": "0", "bins": [], "runs": [{"name": name}]}
    html = page(report)
    assert html.encode("utf-8") and json.loads(embedded(html))["runs"][0]["name"] == name


def test_a_run_that_is_beginning(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "samples").mkdir()
    Ledger(run / "ledger.sqlite").close()
    (found,) = collect.collect([run])["runs"]
    assert found["steps"] == 0 and found["columns"] == {} and not found["finished"] and found["patterns"] == {}
    page({"version": "0", "bins": [], "runs": [found]})


def test_a_run_that_goes_on(tmp_path):
    run = synthetic.write(tmp_path / "run", SMALL, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "rew')
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-3]) + lines[-1])  # the ledger is two steps ahead
    (found,) = collect.collect([run])["runs"]
    assert found["columns"]["metrics:policy/entropy"][-2:] == [None, None] and len(found["columns"]["step"]) == 8


def test_what_is_not_finite_is_left_out(tmp_path):
    run = synthetic.write(tmp_path / "run", SMALL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["loss/policy"] = "nan"
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert collect.collect([run])["runs"][0]["columns"]["metrics:loss/policy"][-1] is None


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda run: (run / "ledger.sqlite").unlink(), "there is no .*ledger.sqlite"),
    (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n{oops\n'), "metrics.jsonl:2: not valid JSON"),
])
def test_bad_input_is_named(tmp_path, spoil, message):
    run = synthetic.write(tmp_path / "run", SMALL)
    spoil(run)
    with pytest.raises(UserError, match=message):
        collect.collect([run])


def test_runs_are_told_apart(tmp_path):
    for name in ("a/run", "b/run"):
        synthetic.write(tmp_path / name, SMALL)
    report = collect.collect([tmp_path / "a/run", tmp_path / "b/run"])
    assert [run["name"] for run in report["runs"]] == ["a/run", "b/run"]
    with pytest.raises(UserError, match="named twice"):
        collect.collect([tmp_path / "a/run", tmp_path / "b/../a/run"])
    with pytest.raises(UserError, match="ledger.sqlite: is a file; give the run folder"):
        collect.collect([tmp_path / "a/run/ledger.sqlite"])


def test_many_steps_are_thinned():
    rows = [{"step": i, "epoch": 1, "stage": "s", "rollouts/all": 8, "advantage/all": 1, "reward/all": float(i)}
            for i in range(1, 11)]
    table = series.columns(rows, [], points=4)
    assert table["steps_per_point"] == 3
    assert table["columns"]["step"] == [3, 6, 9, 10] and table["columns"]["rollouts"] == [24, 48, 72, 80]
    assert table["columns"]["reward/all"] == [2.0, 5.0, 8.0, 10.0]


def test_responses_fit_their_size(tmp_path):
    run = synthetic.write(tmp_path / "run", synthetic.Shape(steps=60, stored=16, response=12_000))
    chosen = responses.choose(run, 200_000)
    assert 100_000 < len(json.dumps(chosen["rows"])) <= 220_000
    place = {name: i for i, name in enumerate(chosen["fields"])}
    steps = sorted({row[place["step"]] for row in chosen["rows"]})
    assert steps[0] == 1 and steps[-1] == 60 and len(steps) == chosen["shown"] == responses.STEPS
    assert all("characters left out" in row[place["response"]] for row in chosen["rows"])


def test_the_end_of_a_long_text_is_kept():
    text = "".join(map(str, range(5000)))
    assert responses.clip(text).endswith("4999") and responses.clip(text).startswith("012")
    assert len(responses.clip(text)) < responses.CHARACTERS + 60 and responses.clip("short") == "short"


def test_a_thousand_steps_stay_under_5_mb(tmp_path: Path):
    shape = synthetic.Shape(steps=1000, stage_at=400, per_epoch=12, stored=8, response=6000)
    runs = [synthetic.write(tmp_path / "one", shape)]
    for i in range(3):
        shutil.copytree(runs[0], tmp_path / f"other-{i}")
        runs.append(tmp_path / f"other-{i}")
    assert len(page(collect.collect(runs[:1])).encode()) < 5e6
    assert len(page(collect.collect(runs)).encode()) < 5e6
