"""Lines of the audit log in words: who did it, to what, and the rest of what it says; nothing of what is empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.common.canonical import canonical

UNKNOWN = "an unknown name"
"""Who tried to sign in by a name that no user has; the name itself is not in the log, since people type passwords there."""
_ELSEWHERE = frozenset(("line", "at", "event", "by", "user", "hash", "before", "fingerprint"))
"""Keys that the page tells in a column of their own, or not at all: a fingerprint comes by telephone."""


@dataclass(frozen=True)
class Line:
    """A line for people.

    Attributes
    ----------
    number : from 1
    at : when; empty when it does not say
    event : what happened
    who : whoever did it; empty when it does not say
    about : the request, the site or the user that it was done to; empty when there is none
    details : name and text of whatever else it says
    """

    number: int
    at: str
    event: str
    who: str
    about: str
    details: tuple[tuple[str, str], ...]


def told(entry: Mapping[str, Any]) -> Line:
    """A line of the log (`Source.audit`) in words. Whatever it holds is shown: somebody may have written into the log.

    >>> told({"line": 7, "event": "sign-in failed", "user": "", "address": "10.0.0.1"}).who
    'an unknown name'
    """
    by, user = (_text(entry.get(key)) for key in ("by", "user"))
    if "user" in entry and not user:
        # A lock is of the name, or of the address whatever the name was: the log then leaves out the name.
        user = (
            UNKNOWN if entry.get("event") != "locked out" else f"whoever is at {_text(entry.get('address')) or 'its address'}"
        )
    whose = next((text for key in ("request", "requests", "site", "run") if (text := _text(entry.get(key)))), "")
    details = [(str(key), _text(value)) for key, value in entry.items() if key not in _ELSEWHERE]
    if by and user:
        details.insert(0, ("user", user))
    return Line(
        number=entry["line"],
        at=entry["at"] if isinstance(entry.get("at"), str) else "",
        event=_text(entry.get("event")),
        who=by or user,
        about=whose or (user if by else ""),
        details=tuple((key, text) for key, text in details if text),
    )


def _text(value: Any) -> str:
    """A value in words; empty when it says nothing."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(text for one in value if (text := _text(one)))
    if isinstance(value, dict):
        return ", ".join(f"{key} {text}" for key, one in value.items() if (text := _text(one)))
    return value if isinstance(value, str) else canonical(value)
