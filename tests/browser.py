"""A headless Chromium to look at pages with. Without one, or without playwright, tests that need it are skipped, unless
SRPO_REQUIRE_BROWSER is 1."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")
LIMIT = 120_000
"""Milliseconds: machines that test are busy."""


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's handle of a browser."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        executable, missing = None, "playwright is not installed"
    else:
        missing = "there is no chromium"
    if executable is None:
        if os.environ.get("SRPO_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{missing}, and SRPO_REQUIRE_BROWSER is 1")
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(QUIET), timeout=LIMIT)
        try:
            yield browser
        finally:
            browser.close()


class View:
    """A page that is open, and everything it complained of."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, scheme: str = "light"):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(LIMIT)
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(file.as_uri())

    def draw(self) -> None:
        """Draw every plot, also those that are not near the screen."""
        self.page.evaluate("renderAll()")

    def titles(self, condition: str) -> list[str]:
        """Titles of the cards, of those that are shown, for which a JavaScript condition on `card` holds."""
        return self.page.evaluate("cards.filter((c) => !c.node.hidden).map((c) => c.node)"
                                  f".filter((card) => {condition}).map((card) => card.querySelector('h3').textContent)")

    def empty(self) -> list[str]:
        """Cards that show neither a mark of their data nor a note."""
        marks = ", ".join(f".mark-{kind} path[d]:not([d=''])" for kind in ("line", "area", "rect", "symbol"))
        return self.titles(f'!card.querySelector(".note") && ![...card.querySelectorAll("{marks}")]'
                           ".some((mark) => { const b = mark.getBBox(); return b.width > 0 || b.height > 0; })")

    def notes(self) -> list[str]:
        """Cards that show a note in place of a plot."""
        return self.titles("card.querySelector('.note')")

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
