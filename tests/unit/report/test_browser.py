"""The page in a real browser: no complaint, every plot drawn, light and dark, on a phone; the controls and filters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic

from srpo.control.ledger import Ledger
from srpo.report.collect import collect
from srpo.report.page import page
from tests.browser import View, chromium

SHAPE = synthetic.Shape(steps=24, stage_at=11, per_epoch=3, stored=8)
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(246, 247, 249)", "rgb(15, 18, 23)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    srpo = synthetic.write(folder / "srpo", SHAPE, responses=synthetic.HOSTILE)
    grpo = synthetic.write(folder / "grpo", synthetic.Shape(steps=20, stage_at=9, per_epoch=3, stored=0, seed=2),
                           sampler="plain", finished=False)
    (grpo / "metrics.jsonl").unlink()
    (folder / "empty").mkdir()
    Ledger(folder / "empty" / "ledger.sqlite").close()
    files = {}
    for name, runs in {"one": [srpo], "bare": [grpo], "empty": [folder / "empty"],
                       "all": [srpo, grpo, folder / "empty"]}.items():
        files[name] = folder / f"{name}.html"
        files[name].write_text(page(collect(runs)), encoding="utf-8")
    return files


@pytest.mark.parametrize(("name", "width", "scheme"), [
    ("one", 1280, "light"), ("one", 390, "dark"), ("all", 1280, "dark"), ("all", 390, "light")])
def test_every_plot_is_drawn_and_nothing_complains(browser, pages, name, width, scheme):
    view = View(browser, pages[name], width, scheme)
    view.draw()
    assert view.complaints == [] and view.requests == [pages[name].as_uri()]
    assert view.empty() == []
    if name == "one":
        assert view.notes() == []
    assert len(view.titles("true")) > 35
    assert view.overflow() == 0
    assert view.page.evaluate(BACKGROUND) == (DARK if scheme == "dark" else LIGHT)
    assert "owned" not in view.page.title()
    view.page.close()


def test_what_a_run_lacks_is_said(browser, pages):
    view = View(browser, pages["bare"])
    view.draw()
    assert view.complaints == [] and view.empty() == []
    assert "Groups with zero advantage" in view.notes() and "Seconds a step, by phase" in view.notes()
    text = view.page.inner_text("body")
    for part in ("were not evaluated", "stored no responses", "No stored responses: grpo", "not finished"):
        assert part in text
    view.page.close()


def test_a_run_without_a_step(browser, pages):
    view = View(browser, pages["empty"])
    view.draw()
    assert view.complaints == [] and view.empty() == [] and view.notes() == view.titles("true") != []
    assert "No step has been recorded yet." in view.page.inner_text("body")
    view.page.close()


def test_filters_of_the_responses(browser, pages):
    view = View(browser, pages["one"])
    every = view.page.evaluate("report.runs[0].responses.rows.map((row) => Object.fromEntries("
                               "report.runs[0].responses.fields.map((name, i) => [name, row[i]])))")

    def found() -> int:
        return int(view.page.inner_text("#matches").split()[0])

    assert found() == len(every)
    view.page.select_option("#filter-outcome", "correct")
    assert found() == sum(r["correct"] >= 1 for r in every) > 0
    view.page.select_option("#filter-domain", "code")
    assert found() == sum(r["correct"] >= 1 and r["domain"] == "code" for r in every) > 0
    assert {t.split()[-3] for t in view.page.locator("#list .what").all_inner_texts()} <= {"code"}
    view.page.select_option("#filter-outcome", "")
    view.page.select_option("#filter-domain", "")
    view.page.fill("#filter-from", "5")
    view.page.fill("#filter-to", "6")
    assert found() == sum(5 <= r["step"] <= 6 for r in every) > 0
    view.page.fill("#filter-to", "")
    assert found() == sum(r["step"] >= 5 for r in every)
    view.page.fill("#filter-to", "24")
    view.page.fill("#filter-from", "1")
    view.page.fill("#filter-search", "</SCRIPT>")
    assert found() == sum("</script>" in r["response"] for r in every) == 1
    assert view.page.locator("#response mark").all_inner_texts() == ["</script>"] * 2
    assert "accuracy" in view.page.inner_text("#response") and view.complaints == []
    view.page.fill("#filter-search", "no such words")
    assert "No stored response fits" in view.page.inner_text("#response")
    view.page.close()


def test_controls(browser, pages):
    view = View(browser, pages["all"])
    view.draw()
    lines = "cards[0].node.querySelectorAll('.mark-line path').length"
    assert view.page.evaluate(lines) == 4  # two runs with steps, as measured and smoothed
    view.page.uncheck("#legend input >> nth=1")
    view.page.wait_for_function(f"{lines} === 2")
    view.page.evaluate("smoothing.value = 0; smoothing.oninput()")
    view.page.wait_for_function(f"{lines} === 1")
    view.page.select_option("#axis", "rollouts")
    view.page.wait_for_function("cards[0].node.textContent.includes('rollouts')")
    view.page.click("#theme")  # light
    view.page.click("#theme")  # dark
    assert view.page.evaluate(BACKGROUND) == DARK
    view.draw()
    assert view.complaints == [] and view.empty() == []
    view.page.close()


def test_the_value_under_the_pointer(browser, pages):
    view = View(browser, pages["one"])
    view.draw()
    view.page.locator(".plot svg").first.scroll_into_view_if_needed()
    box = view.page.locator(".plot svg").first.bounding_box()
    view.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 80)
    text = view.page.inner_text("#hover")
    step = int(text.split("step ")[1].split()[0])
    exact = view.page.evaluate(f"report.runs[0].columns['reward/all'][report.runs[0].columns.step.indexOf({step})]")
    assert f"{exact:.4g}" in text and "srpo" in text
    line = view.page.locator(".mark-line path").first.bounding_box()
    view.page.mouse.move(line["x"] + line["width"], box["y"] + 80)
    cursor = view.page.locator(".cursor").first.bounding_box()
    assert cursor["x"] == pytest.approx(line["x"] + line["width"], abs=1.5)
    retention = view.page.locator(".card:has(h3:text-is('Retention')) svg")
    retention.scroll_into_view_if_needed()
    box = retention.bounding_box()
    view.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 80)
    assert view.page.inner_text("#hover").startswith("epoch ") and view.complaints == []
    view.page.close()
