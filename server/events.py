"""The events of a run, one JSON object a line, in `events.jsonl` of its folder: what tells how it is, to whoever looks."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from excise.common.canonical import finite
from excise.common.files import private, storage_errors

EVENTS = "events.jsonl"
TAIL = 2**18
"""Bytes of a run's file that are searched for its last event; the longest events have a few kilobytes."""
FAILED = "failed"
"""The event that ends a run which came to nothing, with what the coordinator is told and the exit code of its command."""
STOPPED = "stopped"
"""The event that ends a run which somebody stopped: what was done is kept, and it can be resumed."""


def add(run: Path, kind: str, **details: Any) -> None:
    """Append an event to those of the run in the folder `run`.

    Raises
    ------
    StorageError : it cannot be written
    """
    line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **finite(details)})
    with storage_errors(run / EVENTS):
        run.mkdir(parents=True, exist_ok=True)
        with open(run / EVENTS, "a+b", opener=private) as file:
            file.seek(-min(1, file.seek(0, os.SEEK_END)), os.SEEK_END)
            torn = file.read(1) not in (b"", b"\n")  # whoever wrote last was killed, or the disk was full
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def events_of(run: Path, after: int = 0) -> list[dict[str, Any]]:
    """Events in their order, without the first `after`; a line that is not whole, or not yet, is left out."""
    path = run / EVENTS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [event for line in lines if (event := _parsed(line)) is not None][after:]


def last_event(run: Path) -> dict[str, Any] | None:
    """The last event that is whole; None before the first. Of a long run only the end of its file is read."""
    path = run / EVENTS
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        event = _parsed(line)
        if event is not None and {"at", "event"} <= event.keys():
            return event
    return None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
