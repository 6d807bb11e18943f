"""What the people of a site decided of a forget request: the text that their site's key signs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

from excise.common.errors import RequestError

NAME, NOTE = 200, 2000
"""Most characters of a decision's `by` and `note`."""


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

    def __post_init__(self) -> None:
        """Bound what people write: it travels to the coordinator and stands in evidence and logs for ever.

        Raises
        ------
        RequestError : a text is too long, or the time is none
        """
        for name, text, most in (("name", self.by, NAME), ("note", self.note, NOTE)):
            if len(text) > most:
                raise RequestError(f"the {name} of a decision has {len(text)} characters; at most {most} are kept")
        try:
            datetime.fromisoformat(self.at)
        except ValueError:
            raise RequestError(
                f"a decision was made at a time such as 2026-01-31T12:00:00Z, not at '{self.at[:40]}'"
            ) from None

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
