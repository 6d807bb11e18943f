"""Whether a message may be answered, by the site's policy and its people, checked before anything is done. Fail closed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, time

from excise import __version__
from excise.client.policy import LimitSettings, PolicySettings
from excise.client.requests import Requests
from excise.common.decision import Standing
from excise.common.errors import ExciseError, SiteError
from excise.common.messages import (
    AuditQuery,
    EmbeddingQuery,
    FitInstruction,
    Message,
    MomentsQuery,
    ProbeQuery,
    ReferenceQuery,
    StatusQuery,
    UnlearnInstruction,
)
from excise.common.request import ForgetRequest


class Forbidden(ExciseError):
    """The site's policy does not allow what was asked. The code is all that the coordinator is told."""

    def __init__(self, code: SiteError, message: str) -> None:
        super().__init__(message)
        self.code = code


def check(message: Message, policy: PolicySettings, limits: LimitSettings, now: datetime) -> None:
    """Refuse a message that the policy does not allow.

    Raises
    ------
    Forbidden : says which clause
    """
    for refusal in _refusals(message, policy, limits, now):
        raise Forbidden(SiteError.FORBIDDEN, f"{refusal} (policy of this site)")


def check_approval(message: Message, requests: Requests) -> None:
    """Refuse a message about a request that no one has approved here; one that is new is kept for them to see.

    Raises
    ------
    Forbidden : pending, or denied
    RequestError : another request of this id came before
    """
    parts = message.parts if isinstance(message, StatusQuery | AuditQuery) else ()
    for request in requests_of(message)[:1]:  # its parts are looked at with it
        requests.arrive(request, parts)
        standing = requests.standing(request)
        if standing is Standing.PENDING:
            raise Forbidden(SiteError.NOT_APPROVED, f"'{request.id}' waits for excise site approve {request.id}")
        if standing is Standing.DENIED:
            raise Forbidden(SiteError.DENIED, f"'{request.id}' was denied here")


def count_round(request: ForgetRequest, requests: Requests, limits: LimitSettings) -> None:
    """Count one more unlearning round of a request and of all that it joins, in whatever run and company.

    The coordinator's own count is not asked.

    Raises
    ------
    Forbidden : it is one too many
    StorageError : it cannot be counted
    """
    if requests.count_round(request) > limits.rounds:
        raise Forbidden(SiteError.FORBIDDEN, f"'{request.id}' had limits.rounds = {limits.rounds} rounds here already")


def requests_of(message: Message) -> tuple[ForgetRequest, ...]:
    """Every request that a message names, first the one that joins others."""
    if isinstance(message, FitInstruction):
        return (message.without,) if message.without else ()
    if isinstance(message, StatusQuery | AuditQuery):
        return tuple(request for request in (message.request, *message.parts) if request)
    about = ReferenceQuery | UnlearnInstruction | ProbeQuery | MomentsQuery | EmbeddingQuery
    return (message.request,) if isinstance(message, about) else ()


def _refusals(message: Message, policy: PolicySettings, limits: LimitSettings, now: datetime) -> Iterator[str]:
    if __version__ not in policy.releases:
        yield f"excise {__version__} may not run here, only {', '.join(policy.releases)}"
    if policy.hours and not _within(now.time(), *policy.hours):
        yield f"rounds are answered from {policy.hours[0]:%H:%M} to {policy.hours[1]:%H:%M}, it is {now:%H:%M}"
    for request in requests_of(message):
        if request.kind not in policy.kinds:
            yield f"requests of kind '{request.kind}' are not carried out here, only {', '.join(policy.kinds) or 'none'}"
    if isinstance(message, FitInstruction) and not policy.training:
        yield "ordinary training is not allowed here"
    if isinstance(message, ReferenceQuery) and not policy.profiles:
        yield "losses do not leave here, which calibrated targets need"
    if isinstance(message, ProbeQuery) and not message.request.linear_probe:
        yield "the request does not ask for a linear probe"
    if isinstance(message, MomentsQuery | EmbeddingQuery) and not policy.embeddings:
        yield "where models put single images does not leave here"
    if isinstance(message, UnlearnInstruction):
        local = message.settings.local
        if local.epochs is None and local.steps > limits.steps:
            yield f"{local.steps} gradient steps in a round; at most {limits.steps} are allowed here"


def _within(now: time, begins: time, ends: time) -> bool:
    """Whether `now` lies between the two, which may have midnight between them."""
    return begins <= now < ends if begins < ends else now >= begins or now < ends
