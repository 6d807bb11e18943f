"""A real browser: Debian's Chromium, driven by playwright, and what a page is for somebody who opens it for the first time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from excise.common.errors import ConfigError
from excise.server.dashboard.access import COOKIE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
SIZE = {"width": 1366, "height": 768}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


@dataclass(frozen=True)
class First:
    """The Overview in a browser that has never seen it.

    Attributes
    ----------
    painted : seconds from asking for the page until something of its content was painted
    drawn : the same until every chart was drawn and painted
    bytes : of the page and all that belongs to it, on the wire, with headers
    """

    painted: float
    drawn: float
    bytes: int


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's Chromium, for the length of the block.

    Raises
    ------
    ConfigError : playwright or Chromium is missing; says how to get it
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ConfigError("a browser is driven by playwright: pip install playwright") from None
    program = shutil.which("chromium")
    if program is None:
        raise ConfigError("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def signed_in(browser: Browser, url: str, session: str, theme: str = "light") -> Iterator[Page]:
    """A page with a profile of its own that nobody used, and a session."""
    context = browser.new_context(viewport=SIZE, color_scheme=theme)  # type: ignore[arg-type]
    context.add_cookies([{"name": COOKIE, "value": session, "url": url}])
    try:
        yield context.new_page()
    finally:
        context.close()


def first_look(browser: Browser, url: str, session: str, run: str) -> First:
    """Open the Overview of a run for the first time."""
    with signed_in(browser, url, session) as page:
        page.goto(f"{url}/?run={run}", wait_until="commit")
        drawn = page.wait_for_function(
            """() => {  // not before all is there: of a page half read, even every one of no charts is drawn
                const charts = [...document.querySelectorAll('.chart')];
                const all = document.readyState === 'complete' && charts.length;
                return all && charts.every((chart) => chart.childElementCount) && performance.now();
            }"""
        ).json_value()
        painted, size = page.evaluate(
            """async () => [await new Promise((paint) => new PerformanceObserver((list) => {
                    const [first] = list.getEntriesByName('first-contentful-paint');
                    if (first) paint(first.startTime);
                }).observe({ type: 'paint', buffered: true })),
                [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
                    .reduce((all, one) => all + one.transferSize, 0)]"""
        )
    # Charts may be there before the first frame is: a busy machine paints late.
    return First(painted / 1000, max(painted, drawn) / 1000, int(size))


def faults(page: Page) -> list[str]:
    """What axe finds wrong with a page, by WCAG 2.1 A and AA.

    Raises
    ------
    ConfigError : axe is missing; says how to get it
    """
    try:
        import axe_playwright_python  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError("pages are judged by axe: pip install axe-playwright-python") from None
    page.evaluate(Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text())
    found = page.evaluate("(rules) => axe.run({ runOnly: rules })", RULES)
    return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]
