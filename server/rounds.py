"""One round of questions to sites over Flower's grid: a window of outstanding messages, a deadline, a quorum.

Flower's own loop waits for ever for missing nodes and keeps every reply in memory. Here replies are handed on one at a time as
they come, at most `window` are under way, and a round ends at its deadline with whoever has answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic

from flwr.app import Message as FlowerMessage
from flwr.app import RecordDict
from flwr.serverapp import Grid

from excise.common.errors import Interrupted, MessageError, QuorumError, UpdateRefused
from excise.common.messages import Failure, Message, R
from excise.common.settings import RoundSettings

POLL_SECONDS = 0.05  # between looks for replies: short against a round, long against the look itself


@dataclass(frozen=True)
class Refusal:
    """Why a site's answer was not used: `code` is a `SiteError`, an admission code, "malformed" or "no_answer"."""

    site: str
    code: str
    incident: str = ""


@dataclass(frozen=True)
class RoundResult(Generic[R]):
    """How a round ended: the names of the sites whose reply was used, and the refusals."""

    used: tuple[str, ...]
    refused: tuple[Refusal, ...]
    seconds: float
    bytes_down: int
    bytes_up: int
    replies: Mapping[str, R] = field(default_factory=dict)
    """Replies by site, when the round kept them."""


def run_round(
    grid: Grid,
    nodes: Mapping[str, int],
    question: Callable[[str], Message],
    reply_type: type[R],
    settings: RoundSettings,
    use: Callable[[str, R], None] | None = None,
    group: str = "",
    stopped: Callable[[], bool] = lambda: False,
) -> RoundResult[R]:
    """Ask every site of `nodes` and hand each good reply to `use`; without `use`, keep the replies.

    Parameters
    ----------
    nodes : Flower's node id of each site to ask
    question : builds a site's message when it is about to be sent
    use : takes (site, reply); may raise `UpdateRefused`, which counts as no usable answer
    group : Flower's group id, for its logs
    stopped : asked at every look for replies; True ends the round at once

    Raises
    ------
    Interrupted : `stopped` said so
    QuorumError : too few usable replies by the deadline; names the sites that are missing
    """
    began = time.monotonic()
    waiting, pending = sorted(nodes), dict[str, str]()  # sites to ask; message id → site that was asked
    used: list[str] = []
    kept: dict[str, R] = {}
    refused: list[Refusal] = []
    bytes_down = bytes_up = 0

    while (waiting or pending) and time.monotonic() - began < settings.deadline:
        if stopped():
            raise Interrupted("stopped by Ctrl-C")
        while waiting and len(pending) < settings.window:
            site = waiting.pop(0)
            message = question(site)
            record = message.to_record()
            bytes_down += record_bytes(record)
            # A list of one: push_messages on a deployed grid fails on a generator.
            (message_id,) = grid.push_messages([FlowerMessage(record, nodes[site], message.KIND, group_id=group)])
            pending[message_id] = site
        replies = list(grid.pull_messages(list(pending)))
        for reply in replies:
            site = pending.pop(reply.metadata.reply_to_message_id)  # a dead node's reply names no source, but this it does
            content = reply.content if reply.has_content() else RecordDict()
            bytes_up += record_bytes(content)
            try:
                answer = _parsed(content, reply_type)
                if use is None:
                    kept[site] = answer
                else:
                    use(site, answer)
                used.append(site)
            except MessageError:
                refused.append(Refusal(site, "malformed" if reply.has_content() else "no_answer"))
            except _SiteFailed as error:
                refused.append(Refusal(site, error.failure.code, error.failure.incident))
            except UpdateRefused as error:
                refused.append(Refusal(site, error.code))
        if not replies and pending:
            time.sleep(POLL_SECONDS)
    refused += [Refusal(site, "no_answer") for site in sorted([*waiting, *pending.values()])]

    _check_quorum(nodes, used, refused, settings)
    replies_by_site = dict(sorted(kept.items()))
    seconds = time.monotonic() - began
    return RoundResult(tuple(sorted(used)), tuple(refused), seconds, bytes_down, bytes_up, replies_by_site)


class _SiteFailed(Exception):
    """The site answered that it could not."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


def _parsed(content: RecordDict, reply_type: type[R]) -> R:
    config = content.get("message")
    if isinstance(config, Mapping) and config.get("kind") == Failure.KIND:
        raise _SiteFailed(Failure.from_record(content))
    return reply_type.from_record(content)


def _check_quorum(nodes: Mapping[str, int], used: list[str], refused: list[Refusal], settings: RoundSettings) -> None:
    if len(used) >= settings.quorum * len(nodes) and used:
        return
    reasons = ", ".join(f"{refusal.site} ({refusal.code})" for refusal in refused)
    raise QuorumError(
        f"{len(used)} of {len(nodes)} sites gave a usable answer within {settings.deadline:g} s; the quorum is "
        f"{settings.quorum:.0%}. Missing: {reasons}. Start those sites, or lower rounds.quorum.",
        tuple(refusal.site for refusal in refused),
        tuple(refusal.code for refusal in refused),
        tuple(refusal.incident for refusal in refused),
    )


def record_bytes(record: RecordDict) -> int:
    """Bytes that a record's arrays take on the wire; the few hundred bytes around them are not counted."""
    return sum(len(array.data) for arrays in record.array_records.values() for array in arrays.values())
