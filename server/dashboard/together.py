"""What many callers of an event loop ask at once is made by one thread, and the others wait without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool


class Together:
    """What is being made just now, by key. For one event loop."""

    def __init__(self) -> None:
        self._making: dict[Hashable, asyncio.Task[Any]] = {}

    async def ended(self, key: Hashable) -> None:
        """Wait until what was begun of this key before now has ended, well or not."""
        if (begun := self._making.get(key)) is not None:
            await asyncio.wait([begun])

    async def make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` makes in a thread, or what is being made of this key already. Raises what it raises."""
        if (making := self._making.get(key)) is None:
            making = self._making[key] = asyncio.create_task(run_in_threadpool(make))
            making.add_done_callback(partial(self._made, key))
        return await asyncio.shield(making)  # one who goes away does not end it for the others

    def _made(self, key: Hashable, making: asyncio.Task[Any]) -> None:
        del self._making[key]
        if not making.cancelled():
            making.exception()  # whoever waits is told of it; when nobody does any more, that is no fault
