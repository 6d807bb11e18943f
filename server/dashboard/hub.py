"""One stream of events for every viewer: each frame is encoded once, and who reads too slowly is let go.

A viewer that is let go connects again by itself, as server-sent events do, and fetches what it shows anew: it misses nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

WAITING = 64
"""Most frames that wait for one viewer."""
QUIET = 15.0
"""Seconds without a frame after which an empty event is sent, so that proxies and viewers know that the stream lives."""
STILL = b"event: still\ndata: .\n\n"
RETRY = b"retry: 2000\n\n"
"""Milliseconds after which a browser connects again."""


class Hub:
    """Viewers, and what is told to all of them. For one event loop."""

    def __init__(self) -> None:
        self._viewers: set[asyncio.Queue[bytes | None]] = set()
        self._told = 0

    @property
    def viewers(self) -> int:
        """How many there are."""
        return len(self._viewers)

    def tell(self, kind: str, **details: Any) -> None:
        """Send an event to every viewer. `details` are JSON values."""
        self._told += 1
        text = json.dumps(details, separators=(",", ":"), allow_nan=False)
        frame = f"id: {self._told}\nevent: {kind}\ndata: {text}\n\n".encode()
        for viewer in list(self._viewers):
            try:
                viewer.put_nowait(frame)
            except asyncio.QueueFull:
                self._let_go(viewer)

    def close(self) -> None:
        """End every stream."""
        for viewer in list(self._viewers):
            self._let_go(viewer)

    async def stream(self) -> AsyncIterator[bytes]:
        """Frames for one viewer, until it goes or is let go."""
        viewer: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)
        self._viewers.add(viewer)
        try:
            yield RETRY
            while True:
                try:
                    frame = await asyncio.wait_for(viewer.get(), QUIET)
                except TimeoutError:
                    frame = STILL
                if frame is None:
                    return
                yield frame
        finally:
            self._viewers.discard(viewer)

    def _let_go(self, viewer: asyncio.Queue[bytes | None]) -> None:
        self._viewers.discard(viewer)
        while not viewer.empty():
            viewer.get_nowait()
        viewer.put_nowait(None)
