"""One round of questions to sites over Flower's grid: a window of outstanding messages, a deadline, a quorum.

Flower's own loop waits for ever for missing nodes and keeps every reply in memory. Here replies are handed on one at a time as
they come, at most `window` are under way, and a round ends at its deadline with whoever has answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic

from flwr.app import RecordDict

from excise.common.errors import Interrupted, MessageError, QuorumError, SiteError, UpdateRefused
from excise.common.messages import Failure, Message, R
from excise.common.settings import RoundSettings
from excise.server.post import Post, Reply, Round, record_bytes
from excise.server.vigil import Awaiting, Vigil

SHORTEST, LONGEST = 0.05, 0.5
"""Seconds between two looks for replies, each of which is a request to the SuperLink."""
NO_ANSWER, MALFORMED = "no_answer", "malformed"


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
    post: Post,
    nodes: Mapping[str, int | None],
    question: Callable[[str], Message],
    reply_type: type[R],
    settings: RoundSettings,
    use: Callable[[str, R], None] | None = None,
    round_: Round = Round(""),  # noqa: B008 - frozen
    stopped: Callable[[], bool] = lambda: False,
    awaiting: Awaiting = lambda *_: None,
) -> RoundResult[R]:
    """Ask every site of `nodes` and hand each good reply to `use`; without `use`, keep the replies.

    Parameters
    ----------
    nodes : Flower's node id of each site to ask; None of a site that is not connected, and counts as one without an answer
    question : builds a site's message when it is about to be sent
    use : takes (site, reply), once for each site at most; may raise `UpdateRefused`, which counts as no usable answer
    stopped : asked at every look for replies; True ends the round at once
    awaiting : told who is awaited when nothing was heard for a while (`server/vigil.py`)

    Raises
    ------
    Interrupted : `stopped` said so
    QuorumError : too few usable replies by the deadline; names the sites that are missing
    """
    began, vigil = time.monotonic(), Vigil(awaiting)
    heard_at = began
    waiting = [(site, node) for site, node in sorted(nodes.items()) if node is not None]
    used: list[str] = []
    kept: dict[str, R] = {}
    refused = [Refusal(site, NO_ANSWER) for site, node in sorted(nodes.items()) if node is None]
    bytes_down = bytes_up = 0

    def take(reply: Reply) -> None:
        nonlocal bytes_up
        bytes_up += record_bytes(reply.content or RecordDict())
        try:
            answer = _parsed(reply, reply_type)
            if use is None:
                kept[reply.site] = answer
            else:
                use(reply.site, answer)
            used.append(reply.site)
        except MessageError:
            refused.append(Refusal(reply.site, NO_ANSWER if reply.content is None else MALFORMED))
        except _SiteFailed as error:
            refused.append(Refusal(reply.site, error.failure.code, error.failure.incident))
        except UpdateRefused as error:
            refused.append(Refusal(reply.site, error.code))

    try:
        while (waiting or post.awaited) and time.monotonic() - began < settings.deadline:
            if stopped():
                raise Interrupted("stopped by Ctrl-C")
            while waiting and len(post.awaited) < settings.window:
                site, node = waiting.pop(0)
                sent = post.send(site, node, question(site), round_)
                if sent is None:
                    refused.append(Refusal(site, NO_ANSWER))
                bytes_down += sent or 0
            replies = post.fetch()
            heard = bool(replies)
            while replies:  # let go of one by one: else two windows of updates would be in memory, these and the next
                take(replies.pop(0))
            if heard:
                heard_at = time.monotonic()
                vigil.news()
            elif post.awaited:
                vigil.look([*post.awaited, *(site for site, _ in waiting)])
                time.sleep(_pause(time.monotonic() - heard_at))
        refused += [Refusal(site, NO_ANSWER) for site in sorted([*(site for site, _ in waiting), *post.awaited])]
    finally:
        post.close()

    _check_quorum(nodes, used, refused, settings)
    replies_by_site = dict(sorted(kept.items()))
    seconds = time.monotonic() - began
    return RoundResult(tuple(sorted(used)), tuple(refused), seconds, bytes_down, bytes_up, replies_by_site)


def _pause(silence: float) -> float:
    """Seconds until the next look for replies: a tenth of the silence so far, so that a round lasts little longer for it."""
    return min(LONGEST, max(SHORTEST, silence / 10))


class _SiteFailed(Exception):
    """The site answered that it could not."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


def _parsed(reply: Reply, reply_type: type[R]) -> R:
    content = RecordDict() if reply.content is None else reply.content
    config = content.get("message")
    if isinstance(config, Mapping) and config.get("kind") == Failure.KIND:
        raise _SiteFailed(Failure.from_record(content))
    return reply_type.from_record(content)


def advice(refused: Iterable[Refusal]) -> str:
    """What to do when these are missing for a quorum: some were silent, some refused, of some the answer was not used."""
    silent, said = [], []
    for one in refused:
        if one.code == NO_ANSWER:
            silent.append(one.site)
        elif one.code in tuple(SiteError):
            said.append(f"{one.site} refused ({one.code}): its engineer finds the reason by excise site status")
        else:
            said.append(f"the answer of {one.site} was not used ({one.code}): docs/coordinator.md tells what the code means")
    if not said:
        return "Start those sites, or lower rounds.quorum."
    start = [f"{', '.join(silent)} gave no answer: start those"] if silent else []
    return f"{'; '.join([*start, *said])}. Or lower rounds.quorum."


def _check_quorum(nodes: Mapping[str, int | None], used: list[str], refused: list[Refusal], settings: RoundSettings) -> None:
    if len(used) >= settings.quorum * len(nodes) and used:
        return
    reasons = ", ".join(f"{refusal.site} ({refusal.code})" for refusal in refused)
    raise QuorumError(
        f"{len(used)} of {len(nodes)} sites gave a usable answer within {settings.deadline:g} s; the quorum is "
        f"{settings.quorum:.0%}. Missing: {reasons}. {advice(refused)}",
        tuple(refusal.site for refusal in refused),
        tuple(refusal.code for refusal in refused),
        tuple(refusal.incident for refusal in refused),
    )
