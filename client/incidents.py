"""The last round that this site did not answer, as its own log tells it: for `excise site status`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from excise.client.config import SiteConfig
from excise.client.logs import ROUNDS
from excise.common.errors import REMEDIES, SiteError


@dataclass(frozen=True)
class Incident:
    """A round that ended with an error here.

    Attributes
    ----------
    code : a `SiteError`, all that the coordinator was told beside the number
    number : of the incident, here and at the coordinator
    """

    at: str
    round: str
    code: str
    number: str

    @property
    def remedy(self) -> str:
        """What the site's engineer does about it."""
        return REMEDIES[SiteError(self.code)]


def last_incident(config: SiteConfig) -> Incident | None:
    """The last one in the log, or in the one before it; None when there is none. Lines that are damaged are left out."""
    log = config.state / "node" / ROUNDS
    for path in (log, log.with_name(f"{ROUNDS}.1")):
        with suppress(OSError):  # not there yet, or the state was deleted: it is only for people to look at
            if found := list(_incidents(path)):
                return found[-1]
    return None


def _incidents(path: Path) -> Iterator[Incident]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if '"incident"' not in line:
            continue
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            yield Incident(str(told["at"]), str(told["round"]), SiteError(told["code"]), str(told["incident"]))
