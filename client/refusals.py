"""What the coordinator said of this site's answers that it did not use: the last few, for `excise site status`.

Each is in the site's log too, and there is no more to it than a code, so the file may be lost with the state that it is in.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from excise.client.config import SiteConfig
from excise.client.database import exclusively
from excise.common.errors import StorageError
from excise.common.files import write_atomically
from excise.common.messages import Question

KEPT = 20
"""Refusals that are kept: what is older says nothing of how the site does now."""
_PLAIN = re.compile(r"[a-z0-9_ -]{1,80}")
"""What codes and names of rounds are made of. Both come from outside, and are shown on a terminal."""
log = logging.getLogger("excise.client")


@dataclass(frozen=True)
class Refused:
    """An answer that the coordinator did not use: when it said so, of which round, and its code."""

    at: str
    round: str
    code: str


def hear(question: Question, config: SiteConfig) -> None:
    """Log and keep what a question says of an earlier answer, if it says anything."""
    if not question.refused:
        return
    at = datetime.now(UTC).isoformat(timespec="seconds")
    told = Refused(at, _plain(question.refused_round), _plain(question.refused))
    about = {"round": told.round, "code": told.code}
    log.warning("the coordinator did not use an answer of this site", extra={"details": about})
    path = _path(config)
    with suppress(StorageError), exclusively(path):  # a full disk is no reason not to answer; the log has it
        write_atomically(path, json.dumps([asdict(one) for one in [*_read(path), told][-KEPT:]]))


def last_refusals(config: SiteConfig) -> list[Refused]:
    """The last answers that were not used, oldest first."""
    return _read(_path(config))


def _path(config: SiteConfig) -> Path:
    return config.state / "refusals.json"


def _read(path: Path) -> list[Refused]:
    try:
        kept: list[dict[str, Any]] = json.loads(path.read_text())
        return [Refused(str(one["at"]), str(one["round"]), str(one["code"])) for one in kept]
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or damaged: it is only for people to look at
        return []


def _plain(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else "unreadable"
