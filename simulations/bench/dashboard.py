"""The dashboard of a busy coordinator: how soon viewers see what happened, what that costs, and how quick its pages are."""

from __future__ import annotations

import asyncio
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from excise.common.errors import ConfigError
from excise.server.config import store_of
from excise.server.dashboard.render import PLACES
from excise.server.roles import Role
from excise.server.store.leases import held, lease_of
from excise.server.users import add
from excise.simulations.bench.browser import First, chromium, faults, first_look, signed_in
from excise.simulations.bench.crowd import WHO, Crowd, crowd
from excise.simulations.bench.viewers import Load, load, sign_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EVERY = 5.0
"""Seconds between two events of the run that is looked at: a run of the demo tells 18 in 379 s, one in 21."""
LOOKS = 5
"""How often the Overview is opened for the first time."""
THEMES = ("light", "dark")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes
    ----------
    started : seconds from the command until the dashboard listens
    firsts : the Overview opened in browsers that never saw it; the first of them right after the start
    faults : what axe finds wrong, by theme, on all pages
    """

    sites: int
    runs: int
    started: float
    firsts: tuple[First, ...]
    faults: dict[str, list[str]]
    load: Load


def measure(home: Path, sites: int, runs: int, viewers: int, seconds: float, progress: Progress) -> Measured:
    """Make a busy coordinator in the folder `home`, start its dashboard as people do, and look at it.

    Raises
    ------
    ConfigError : there is no browser, or the dashboard does not begin
    """
    with chromium():  # so that it is told at once when there is none
        pass
    made = crowd(home, sites, runs, progress)
    users, password = [f"viewer-{number}" for number in range(viewers)], secrets.token_urlsafe()
    with store_of(made.toml) as store:
        for name in users:
            add(store, name, Role.VIEWER, password, WHO)
    with store_of(made.toml) as store, held(store, lease_of(made.run.name)):  # as whoever carries the run out
        return Measured(sites, runs, *_measured(made, users, password, seconds, progress))


def _measured(
    made: Crowd, users: list[str], password: str, seconds: float, progress: Progress
) -> tuple[float, tuple[First, ...], dict[str, list[str]], Load]:
    """As `Measured` has them, without the numbers of sites and runs."""
    began = time.monotonic()
    with _served(made.toml) as (url, process):
        started = time.monotonic() - began
        sessions = sign_in(url, users[:1], password, progress)
        with chromium() as browser:
            progress("opening the Overview")
            firsts = [first_look(browser, url, sessions[0], made.finished) for _ in range(LOOKS)]
            wrong = {theme: _faults(browser, url, sessions[0], theme, progress) for theme in THEMES}
        sessions += sign_in(url, users[1:], password, progress)
        loaded = asyncio.run(load(url, sessions, process, made.run, seconds, EVERY, progress))
    return started, tuple(firsts), wrong, loaded


def _faults(browser: Browser, url: str, session: str, theme: str, progress: Progress) -> list[str]:
    found = []
    with signed_in(browser, url, session, theme) as page:
        for path, name in PLACES:
            progress(f"looking for what some people cannot read: {name}, {theme}")
            page.goto(url + path)
            page.wait_for_function("() => document.getElementById('live').textContent === 'live'")
            found += faults(page)
    return found


@contextmanager
def _served(toml: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of a coordinator's dashboard, started by its command."""
    command = [sys.executable, "-m", "excise.cli", "dashboard", "--server", str(toml), "--port", "0"]
    log = toml.with_name("dashboard.log")
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)  # noqa: S603 - our own
    try:
        while (found := re.search(r"(http://\S+) shows", log.read_text())) is None:
            if process.poll() is not None:
                raise ConfigError(f"the dashboard did not begin; it said: {log.read_text().strip() or 'nothing'}")
            time.sleep(0.01)
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait()
