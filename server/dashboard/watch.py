"""What changed in the run store, looked for four times a second, and told to every viewer by topic.

Nothing is told but that something changed: a page then fetches what it shows of it anew.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import quote

from excise.server.dashboard.hub import Hub
from excise.server.dashboard.source import Source
from excise.server.dashboard.stirred import Mark, Stirred, mark

POLL = 0.25
"""Seconds between two looks."""
WHOLE = 4
"""Every so many looks is at all runs; the others are at those that changed last."""
AGES = 30.0
"""Seconds after which what time alone changes is shown anew: a run that gives no sign, or that nobody carries out any more."""
SITES, REQUESTS, RUNS, AUDIT = "sites", "requests", "runs", "audit"
"""Topics; a run's own is ``run:NAME``."""
log = logging.getLogger("excise.dashboard")


def topic_of(run: str) -> str:
    """The topic of a run, without spaces: pages name several topics with spaces between."""
    return f"run:{quote(run, safe='')}"


class Watch:
    """Compares the run store with how it was, and counts how often each topic changed."""

    def __init__(self, source: Source, hub: Hub) -> None:
        self.source, self.hub = source, hub
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._runs = Stirred(source.runs)
        self._log: Mark | None = None
        self._again = False
        self._timed = time.monotonic()
        self.look()

    def at(self, topics: Sequence[str]) -> tuple[int, ...]:
        """How often each of these topics changed: what was made of them is good until that is another."""
        with self._counting:
            return tuple(self._counts[topic] for topic in topics)

    def look(self, whole: bool = True) -> list[str]:
        """Topics that changed since the last look; of runs, as `Stirred.look` is told."""
        changed: list[str] = []
        if different := self._runs.look(whole):
            changed += [RUNS, *map(topic_of, different)]
        if self.source.audit_log is not None:
            before, self._log = self._log, mark(str(self.source.audit_log))
            written = before != self._log  # each change in the store is one line there
            if written or self._again:
                changed += [SITES, REQUESTS, AUDIT]
            # A line is written a moment before its change is made: whoever asked the store in between has what was before.
            self._again = written
        self._count(changed)
        return changed

    def _count(self, changed: list[str]) -> None:
        with self._counting:  # two threads look
            self._counts.update(changed)

    async def follow(self) -> None:
        """Look, and tell what changed, until cancelled."""
        presence = asyncio.create_task(self._follow_sites())
        try:
            for number in itertools.count():
                await self._tell(partial(self.look, number % WHOLE == 0))
                await asyncio.sleep(POLL)
        finally:
            presence.cancel()

    async def _follow_sites(self) -> None:
        while True:
            await self._tell(self.look_beside)
            await asyncio.sleep(1)

    def look_beside(self) -> list[str]:
        """Topics that changed though nothing was written: who is connected, and what only time tells."""
        changed = [SITES] if self.source.look_for_sites() else []
        if time.monotonic() - self._timed > AGES:
            self._timed = time.monotonic()
            changed.append(REQUESTS)
        self._count(changed)
        return changed

    async def _tell(self, look: Callable[[], list[str]]) -> None:
        try:
            changed = await asyncio.to_thread(look)
        except Exception as error:  # noqa: BLE001 - a folder that cannot be read just now must not end the dashboard
            log.warning("the run store cannot be looked at (%s)", type(error).__name__)
            return
        if changed:
            self.hub.tell("change", topics=changed)
