"""What was made of the run store, for whoever asks next: made once for all viewers, until something changed that it shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from excise.server.dashboard.together import Together
from excise.server.dashboard.watch import Watch

MOST = 400
"""Most things that are kept; of runs that nobody looks at by now some are there for nothing."""


@dataclass
class Made:
    """One of them.

    Attributes
    ----------
    at : how often its topics had changed when it was made; None before
    """

    at: tuple[int, ...] | None = None
    value: Any = None
    making: threading.Lock = field(default_factory=threading.Lock)


class Kept:
    """For many threads: while one makes something the others wait for it, instead of making it as well."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._made: dict[Hashable, Made] = {}
        self._together = Together()

    def fresh(self, key: Hashable, *topics: str) -> Any:
        """What is there and still good; None where it is to be made. Waits for nobody."""
        made = self._made.get(key)
        return made.value if made is not None and made.at == self._watch.at(topics) else None

    def get(self, key: Hashable, make: Callable[[], Any], *topics: str) -> Any:
        """What `make` made at this state of `topics`."""
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= MOST:
                self._made.clear()
            made = self._made.setdefault(key, Made())
        with made.making:
            at = self._watch.at(topics)  # before it is made: what changes meanwhile is seen the next time
            if made.at != at:
                value = make()
                made.at, made.value, made.at = None, value, at  # never an old value under a new state, to whoever looks now
            return made.value

    async def soon(self, key: Hashable, make: Callable[[], Any], *topics: str) -> Any:
        """As `get`, for an event loop."""
        if (value := self.fresh(key, *topics)) is None:
            # What was begun before may be of a state before; what is begun from here on is not.
            await self._together.ended(key)
            if (value := self.fresh(key, *topics)) is None:
                value = await self._together.make(key, partial(self.get, key, make, *topics))
        return value
