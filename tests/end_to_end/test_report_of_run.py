"""The report of a real run: each figure of the paper's analysis, with the run's own numbers, drawn by a browser."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from launches import metrics

from srpo.cli import command
from tests.browser import View, chromium


@pytest.fixture(scope="module")
def page(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    assert command(["report", str(base), "--out", str(file)]) == 0
    return file


def shown(page: Path) -> dict[str, Any]:
    (data,) = re.findall(r'id="report-data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(data)["runs"][0]


def test_numbers_are_the_runs(page, base):
    run, lines = shown(page), metrics(base)[1:]
    assert run["finished"] and run["columns"]["step"] == [m["step"] for m in lines]
    for column, metric in (("reward/all", "reward/mean"), ("length/all", "length/mean")):
        assert run["columns"][column] == pytest.approx([m[metric] for m in lines], rel=1e-5)
    for domain in ("math", "code"):
        name = f"reward/{domain}"
        had = {m["step"]: pytest.approx(m[name], rel=1e-5) for m in lines if name in m}
        assert had and dict(zip(run["columns"]["step"], run["columns"][name], strict=True)) == {
            m["step"]: had.get(m["step"]) for m in lines}
    db = sqlite3.connect(base / "ledger.sqlite")
    identical = db.execute("SELECT AVG(one) FROM (SELECT step, MIN(reward) = MAX(reward) AS one FROM rollouts "
                           "GROUP BY step, prompt_id) GROUP BY step ORDER BY step").fetchall()
    assert run["columns"]["identical/all"] == pytest.approx([share for share, in identical], rel=1e-5)
    changes = db.execute("SELECT step + 1 FROM events WHERE kind = 'stage' ORDER BY step").fetchall()
    assert run["stages"][1]["first"] == changes[0][0] and [s["name"] for s in run["stages"]] == ["sums", "programs"]


def test_a_browser_draws_the_papers_figures(page):
    with chromium() as browser:
        view = View(browser, page)
        view.draw()
        assert view.complaints == [] and view.empty() == []
        drawn = set(view.titles("!card.querySelector('.note')"))
        for title in ("Reward, all responses", "Response length, all responses", "Response length, math",
                      "Identical rewards, all responses", "Groups with zero advantage", "Retention",
                      "Pass-rate flow between epochs", "Frequency: recheck", "Frequency: hesitation",
                      "Frequency: exploration", "Seconds a step, by phase", "Effective gradients per rollout"):
            assert title in drawn
        assert "programs" in view.page.inner_text(".plot >> nth=0")  # the stage that it changes to
        assert int(view.page.inner_text("#matches").split()[0].replace(",", "")) > 0
