"""Viewers of a dashboard without a browser: each holds the stream of changes open and fetches what changed, as a page does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from excise.common.errors import ConfigError
from excise.server import events
from excise.server.dashboard.access import COOKIE, LIVE
from excise.server.dashboard.limits import CHANGES_A_SECOND
from excise.server.dashboard.watch import topic_of
from excise.simulations.bench.crowd import rounds_of
from excise.simulations.bench.processes import processor_seconds, resident

PARTS = "headline,sites,chart:curve,chart:pareto,gates,requests,chart:heat,chart:embedding"
"""Parts of the Overview that are fetched anew when a run told something (static/app.js)."""
WAITS = 10
"""Every so many events one is of a round; the others tell whom the run awaits, as a deployed one does every few seconds."""
SINCE = "2026-01-01T00:00:00.000+00:00"
LATER = 0.12
"""Seconds that a page waits for further changes before it fetches them (static/app.js)."""
WARM, WARM_EVERY = 100, 0.5
"""Events before those that are measured, and seconds between them: as a dashboard that is open all day was told long ago."""
SAMPLES = 100
"""How often memory is looked at."""
Progress = Callable[[str], None]


@dataclass
class Load:
    """What viewers saw, and what it cost.

    Attributes
    ----------
    viewers, seconds, every : how many, for how long, and seconds between two events
    told : milliseconds from an event's being written until a viewer heard of it, one for each viewer and event
    shown : the same until the viewer had fetched the parts that changed
    lost : how often a viewer was let go, or heard nothing of an event
    share : processor time of the server, of one core
    megabytes : its resident memory over the time, MiB
    bytes_a_look : what a viewer fetched for an event, bytes on the wire without headers
    """

    viewers: int
    seconds: float
    every: float
    told: list[float] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    lost: int = 0
    share: float = 0.0
    megabytes: list[float] = field(default_factory=list)
    bytes_a_look: int = 0


def sign_in(url: str, names: Sequence[str], password: str, progress: Progress) -> list[str]:
    """A session of each user; slowly, since the dashboard bounds how often one address may try."""
    sessions = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for number, name in enumerate(names, 1):
            progress(f"signing viewer {number} of {len(names)} in")
            while (answer := client.post("/login", data={"name": name, "password": password})).status_code == 429:
                time.sleep(1 / CHANGES_A_SECOND)
            if answer.status_code != 303:
                raise ConfigError(f"viewer {number} was not let in: status {answer.status_code}")
            sessions.append(answer.cookies[COOKIE])
            client.cookies.clear()
    return sessions


async def load(
    url: str, sessions: Sequence[str], process: int, run: Path, seconds: float, every: float, progress: Progress
) -> Load:
    """Let viewers follow a run to which an event is added now and then; the first `WARM` events are not measured.

    Parameters
    ----------
    sessions : one for each viewer
    process : id of the server's process
    """
    found = Load(len(sessions), seconds, every)
    heard = [asyncio.Event() for _ in sessions]
    clock = _Clock()
    viewers = [
        asyncio.create_task(_view(url, session, run, clock, ready, found))
        for session, ready in zip(sessions, heard, strict=True)
    ]
    try:
        await asyncio.wait_for(asyncio.gather(*(ready.wait() for ready in heard)), 60)
        told = _Told(run)
        for number in range(WARM):
            progress(f"{len(sessions)} viewers, event {number + 1} of {WARM} before those that are measured")
            clock.wrote = await asyncio.to_thread(told.add)
            await asyncio.sleep(WARM_EVERY)
        await asyncio.sleep(1)  # until each has seen the last of them
        found.told, found.shown, found.lost = [], [], 0
        sampling = asyncio.create_task(_sample(process, found))
        number, began, used = 0, time.monotonic(), processor_seconds(process)
        while (now := time.monotonic() - began) < seconds:
            progress(f"{len(sessions)} viewers, {now:.0f} of {seconds:.0f} s")
            number += 1
            clock.wrote = await asyncio.to_thread(told.add)
            await asyncio.sleep(every)
        found.share = (processor_seconds(process) - used) / (time.monotonic() - began)
        found.lost += number * len(sessions) - len(found.told)
        await sampling
    finally:
        for viewer in viewers:
            viewer.cancel()
        ended = await asyncio.gather(*viewers, return_exceptions=True)
    for error in ended:  # a viewer that broke looked at nothing more: its figures would flatter
        if isinstance(error, Exception):
            raise error
    return found


class _Told:
    """What the run that is looked at tells: the events of a run at many sites."""

    def __init__(self, run: Path) -> None:
        self._run, self._number = run, 0
        self._last = {key: value for key, value in rounds_of(run)[-1].items() if key not in ("at", "event")}

    def add(self) -> float:
        """Tell the next event; returns when that was."""
        self._number += 1
        if self._number % WAITS:
            waits = {"number": self._last["round"] + 1, "sites": [], "since": SINCE}
            events.add(self._run, "awaiting", round="unlearned", **waits)
        else:
            self._last["round"] += 1
            events.add(self._run, "unlearned_round", **self._last)
        return time.monotonic()


class _Clock:
    """When an event was written last."""

    wrote = 0.0


async def _view(url: str, session: str, run: Path, clock: _Clock, ready: asyncio.Event, found: Load) -> None:
    query = {"run": run.name, "names": PARTS}
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(30, read=60), cookies={COOKIE: session}) as client:
        while True:
            async for topics in _changes(client, ready):
                if topic_of(run.name) not in topics or not clock.wrote:
                    continue
                found.told.append(1000 * (time.monotonic() - clock.wrote))
                await asyncio.sleep(LATER)
                found.bytes_a_look = await _look(client, query)
                found.shown.append(1000 * (time.monotonic() - clock.wrote))
            found.lost += 1


async def _look(client: httpx.AsyncClient, query: dict[str, str]) -> int:
    """Fetch parts; returns how many bytes they are. Where a kept connection was closed just then it is asked again."""
    for again in (True, False):
        try:
            async with client.stream("GET", "/parts", params=query, headers={LIVE: "1"}) as answer:
                answer.raise_for_status()
                return sum([len(chunk) async for chunk in answer.aiter_raw()])
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if not again:
                raise
    raise AssertionError


async def _changes(client: httpx.AsyncClient, ready: asyncio.Event) -> AsyncIterator[list[str]]:
    """Topics of each event of the stream, until the server ends it."""
    async with client.stream("GET", "/events") as stream:
        stream.raise_for_status()
        ready.set()
        kind = ""
        async for line in stream.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "change":
                yield json.loads(value)["topics"]


async def _sample(process: int, found: Load) -> None:
    for _ in range(SAMPLES):
        found.megabytes.append(resident(process))
        await asyncio.sleep(found.seconds / SAMPLES)
