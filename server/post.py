"""Messages on their way to sites and back, over Flower's grid: which reply answers which question, and which answers none.

A reply counts once, in the round that asked for it. One that comes when its round has ended is *late*, one to a message that
was answered already is *repeated*, and one to a message that nobody here sent is *stray*: none is used, each is told.

What a grid can show of that (Flower 1.41): its SuperLink takes one reply to a message, from the node it went to, as long as
the run lives, and drops all others itself. So a repeated or stray reply is never seen there, neither is one to the former
process of a resumed run, which is another run to Flower; in another grid they may be. A late one is seen when it is still
asked for, unless its node was offline meanwhile: then Flower answers in its place, and that is forgotten here without a word.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from flwr.app import ArrayRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from excise.common.messages import Message

LATE, REPEATED, STRAY = "late", "repeated", "stray"
LATE_KEPT = 200
"""Late messages that are still asked for: each look names them all to the SuperLink, 64 bytes each. The oldest go first."""
ANSWERED_KEPT = 1000
"""Answered messages that are remembered, to know a repeated answer."""
PUSHES = 3
"""How often a question is pushed before its failure is the run's."""
PUSH_PAUSE = 0.5
"""Seconds until a question is pushed again."""


@dataclass(frozen=True)
class Round:
    """What a round is called: its name, and its number within a phase, from 1; 0 when it is the only one."""

    name: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.number}" if self.number else self.name

    def as_json(self) -> dict[str, str | int]:
        """As in events."""
        return {"round": self.name, **({"number": self.number} if self.number else {})}


@dataclass(frozen=True)
class Reply:
    """A site's answer in this round; without content the site's app, or Flower in its place, could not."""

    site: str
    content: RecordDict | None


@dataclass(frozen=True)
class Misplaced:
    """A reply that answers nothing that is asked now.

    Attributes
    ----------
    kind : late, repeated or stray
    site, round : whom it is from and what it answers; empty and None when that is not known
    seconds : since its round ended, or since the first answer
    """

    kind: str
    site: str
    round: Round | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Sent:
    site: str
    round: Round
    since: float


class Post:
    """All messages of one run.

    Parameters
    ----------
    tell : told of each reply that is not used
    """

    def __init__(self, grid: Grid, tell: Callable[[Misplaced], None] = lambda _: None) -> None:
        self._grid, self._tell = grid, tell
        self._pending: dict[str, _Sent] = {}
        self._late: dict[str, _Sent] = {}
        self._answered: dict[str, _Sent] = {}

    @property
    def awaited(self) -> list[str]:
        """Sites that were asked in this round and have not answered, in the order in which they were asked."""
        return [sent.site for sent in self._pending.values()]

    def send(self, site: str, node: int, message: Message, round_: Round) -> int | None:
        """Ask a site; returns the bytes of the question's arrays, None when Flower does not take it: it knows no such node."""
        record = message.to_record()
        ids = self._pushed(FlowerMessage(record, node, message.KIND, group_id=str(round_)))
        # For a node that is unknown it is an empty id, or none at all.
        if not any(ids):
            return None
        self._pending[ids[0]] = _Sent(site, round_, time.monotonic())
        return record_bytes(record)

    def _pushed(self, message: FlowerMessage) -> list[str]:
        """The message's id as Flower gives it, after `PUSHES` attempts at most.

        Sites are asked for the same arrays, which the SuperLink keeps once. It registers a question array by array; when
        another site confirms its own meanwhile, arrays seen a moment ago are removed, and the push fails (Flower 1.41:
        status 500, or an object that is not stored). Pushed again it is the same message to Flower, delivered once.
        """
        failed = 0
        while True:
            try:
                return [*self._grid.push_messages([message])]  # a list: on a deployed grid a generator fails
            except (ObjectPushError, httpx.HTTPStatusError) as error:
                failed += 1
                refused = isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error
                if refused or failed == PUSHES:
                    raise
            time.sleep(PUSH_PAUSE)

    def fetch(self) -> list[Reply]:
        """The answers that have come since; those that are misplaced are told."""
        replies = []
        for message in self._grid.pull_messages([*self._pending, *self._late]):
            asked = message.metadata.reply_to_message_id  # a dead node's reply names no source, but this it does
            if sent := self._pending.pop(asked, None):
                self._answered[asked] = _Sent(sent.site, sent.round, time.monotonic())
                replies.append(Reply(sent.site, message.content if message.has_content() else None))
            else:
                self._misplaced(asked, message.has_content())
        _shorten(self._answered, ANSWERED_KEPT)
        return replies

    def close(self) -> None:
        """The round has ended: what was not answered is late from now on."""
        now = time.monotonic()
        self._late |= {asked: _Sent(sent.site, sent.round, now) for asked, sent in self._pending.items()}
        self._pending.clear()
        _shorten(self._late, LATE_KEPT)

    def _misplaced(self, asked: str, has_content: bool) -> None:
        now = time.monotonic()
        if sent := self._late.pop(asked, None):
            self._answered[asked] = _Sent(sent.site, sent.round, now)
            if has_content:  # else it is Flower's word for it that none will come
                self._tell(Misplaced(LATE, sent.site, sent.round, now - sent.since))
        elif sent := self._answered.get(asked):
            self._tell(Misplaced(REPEATED, sent.site, sent.round, now - sent.since))
        else:
            self._tell(Misplaced(STRAY, "", None, 0.0))


def _shorten(kept: dict[str, _Sent], limit: int) -> None:
    for asked in list(kept)[: max(0, len(kept) - limit)]:
        del kept[asked]


def record_bytes(record: RecordDict) -> int:
    """Bytes that a record's arrays take on the wire; the few hundred bytes around them are not counted."""
    # Not by `record.array_records`: that view is a reference cycle, and holds the record until Python collects its garbage.
    arrays = (array for one in record.values() if isinstance(one, ArrayRecord) for array in one.values())
    return sum(len(array.data) for array in arrays)
