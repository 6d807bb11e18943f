"""What the people of a site decided of a forget request: the text that their site's key signs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum


class Standing(StrEnum):
    """What was decided of a request."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"


@dataclass(frozen=True)
class Decision:
    """What was decided of the request of this `digest`, by whom, when and why."""

    digest: str
    standing: Standing
    by: str
    note: str
    at: str

    def text(self) -> bytes:
        """What is signed: canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_text(cls, text: str) -> Decision:
        """Read what was signed.

        Raises
        ------
        ValueError : that is no decision
        """
        told = json.loads(text)
        if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
            raise ValueError("a decision is an object of strings")
        try:
            return cls(**told | {"standing": Standing(told["standing"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a decision: {error}") from None
