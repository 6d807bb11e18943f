"""Who a user of the dashboard is; apart from `users.py`, since the command line wants it before it wants a store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a user may do."""

    VIEWER = "viewer"
    """See everything, change nothing."""
    COORDINATOR = "coordinator"
    """See and act."""


@dataclass(frozen=True)
class User:
    """Somebody who may sign in.

    Attributes
    ----------
    since : when it was added or its password changed, whichever was later; UTC, ISO 8601
    """

    name: str
    role: Role
    since: str
