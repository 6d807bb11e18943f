"""One Chromium for all tests with a browser, and pages that tell of whatever goes wrong in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from excise.simulations.bench.browser import SIZE
from excise.simulations.bench.browser import chromium as started
from tests.coordinators import Network, copied
from tests.dashboards import COORDINATOR, PASSWORD, app_of, serving

Open = Callable[..., AbstractContextManager[Page]]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture
def made(prepared: Path, tmp_path: Path) -> Iterator[Network]:
    """A copy of the coordinator that a module has `prepared`, for one test."""
    with copied(prepared, tmp_path) as one:
        yield one


@pytest.fixture
def url(made: Network) -> Iterator[str]:
    """Of its dashboard."""
    with serving(app_of(made)) as address:
        yield address


@pytest.fixture
def opened(chromium: Browser) -> Open:
    """Opens a dashboard in a browser of its own, signed in.

    At the end nothing may have been asked of another origin, and nothing may have failed, by script or policy, but what
    `expected` names.
    """

    @contextmanager
    def open_it(
        url: str,
        name: str = COORDINATOR,
        expected: tuple[str, ...] = (),
        width: int = SIZE["width"],
        height: int = SIZE["height"],
        **more: object,
    ) -> Iterator[Page]:
        context: BrowserContext = chromium.new_context(viewport={"width": width, "height": height}, **more)  # type: ignore[arg-type]
        wrong: list[str] = []
        context.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else wrong.append(asked.url))
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        context.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page = context.new_page()
        if name:
            context.request.post(f"{url}/login", form={"name": name, "password": PASSWORD})
            page.goto(f"{url}/")
        try:
            yield page
            assert [one for one in wrong if not any(text in one for text in expected)] == []
        finally:
            context.close()

    return open_it
