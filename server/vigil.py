"""Saying whom a run waits for, once it has waited a while: nothing while all is quick, and no line twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, TypeVar

QUIET = 10.0
"""Seconds without news after which a wait is worth a line. Flower's nodes ask for work every three seconds and start a process
for it, about six in all: a site that is silent for ten is computing, slow or gone, and not merely on its way."""
Awaiting = Callable[[list[str], str], None]
"""Called with the sites that are awaited, and since when (ISO 8601, UTC) nothing was heard."""
T = TypeVar("T")
"""What tells who is awaited."""


class Vigil(Generic[T]):
    """One wait.

    Parameters
    ----------
    tell : told when nothing was heard for `QUIET` seconds, and again when others are awaited
    """

    def __init__(self, tell: Callable[[T, str], None]) -> None:
        self._tell = tell
        self._told: T | None = None
        self.news()

    def news(self) -> None:
        """Something was heard."""
        self._heard, self._since = time.monotonic(), datetime.now(UTC)

    def look(self, awaited: T) -> None:
        """Nothing was heard; `awaited` are still to come."""
        if time.monotonic() - self._heard >= QUIET and awaited != self._told:
            self._told = awaited
            self._tell(awaited, self._since.isoformat(timespec="milliseconds"))
