"""How often a user of the dashboard may ask: more often for pages than for changes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from excise.server.buckets import Buckets

PAGES_AT_ONCE, PAGES_A_SECOND = 600, 60.0
"""Requests that show something. A page with its parts is about ten, each change fetches most of them anew, and people have
several tabs open."""
CHANGES_AT_ONCE, CHANGES_A_SECOND = 20, 1.0
"""Requests that change something: people press buttons."""


class TooMany(Exception):
    """One request too many.

    Attributes
    ----------
    seconds : until the next is answered, whole and at least 1, as the header Retry-After wants them
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = max(1, math.ceil(seconds))
        super().__init__(f"too many requests: try again in {self.seconds} s")


class Limits:
    """Counts what each user asks. Threads may use it at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pages = Buckets(PAGES_AT_ONCE, PAGES_A_SECOND, clock)
        self._lock = threading.Lock()
        self._changes = Buckets(CHANGES_AT_ONCE, CHANGES_A_SECOND, clock)

    def count(self, user: str, changes: bool = False) -> None:
        """Count a request of a user (or of an address, before anybody signed in).

        Raises
        ------
        TooMany : it is one too many
        """
        buckets = self._changes if changes else self._pages
        with self._lock:
            if not buckets.take(user):
                raise TooMany(buckets.wait(user))
