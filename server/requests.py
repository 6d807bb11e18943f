"""Forget requests at the coordinator: drafted, decided by sites, moved from state to state; each step by whom, when and why.

Every function may be called again with the same arguments and changes nothing then.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.orm import Session

from excise.common.decision import Decision, Standing
from excise.common.errors import RequestError, did_you_mean
from excise.common.request import ForgetRequest
from excise.common.signing import is_signed
from excise.server.life import ENDS, State, check_move
from excise.server.store import Store
from excise.server.store.opening import Change
from excise.server.store.tables import Move, Participant, Request, Site, SiteState, now

DECIDABLE = (State.DRAFTED, State.APPROVED, State.RUNNING)
"""While a request is one of these, a site may decide, or decide anew."""
COORDINATOR = "the coordinator"
PENDING = str(Standing.PENDING)


@dataclass(frozen=True)
class RequestStatus:
    """Where a request stands.

    Attributes
    ----------
    waits_for : who has to do something next: names of sites, or `COORDINATOR`; nobody at the end. By the states alone: whose
        signature is awaited, and how a run goes, `server/waiting.py` tells
    since : when it came to this state, or when the one that is awaited longest was asked
    sites : what each site decided
    moves : every step so far
    """

    request: ForgetRequest
    state: State
    since: str
    run: str
    waits_for: tuple[str, ...]
    sites: dict[str, str]
    moves: tuple[Move, ...]


def draft(store: Store, request: ForgetRequest, sites: Iterable[str], by: str, why: str = "") -> None:
    """Take a request in, and ask the sites that it concerns.

    Parameters
    ----------
    sites : names of those that have to approve; every site that is let in when empty
    by : who drafted it, a person or a site

    Raises
    ------
    RequestError : another request has this id, a site is not let in, or there is none
    StorageError : it cannot be kept
    """
    with store.change() as change:
        known = change.session.get(Request, request.id)
        if known is not None:
            if known.digest != request.digest:
                raise RequestError(f"another request has the id '{request.id}'; one id is carried out once: choose another")
            return
        admitted = set(change.session.scalars(select(Site.name).where(Site.state == SiteState.ADMITTED)))
        asked = sorted(set(sites) or admitted)
        for site in asked:
            if site not in admitted:
                raise RequestError(f"no site '{site}' is let in; {did_you_mean(site, admitted)}")
        if not asked:
            raise RequestError("no site is let in: excise server invite SITE")
        at = now()
        change.session.add(
            Request(
                id=request.id,
                digest=request.digest,
                document=request.to_json(),
                drafted_by=by,
                state=State.DRAFTED,
                since=at,
                run="",
            )
        )
        change.session.flush()
        change.session.add_all(Participant(request=request.id, site=site, since=at) for site in asked)
        change.session.add(Move(request=request.id, before="", after=State.DRAFTED, by=by, why=why, at=at))
        change.log("request drafted", request=request.id, digest=request.digest, sites=asked, by=by, why=why)


def decide(store: Store, site: str, request_id: str, decision: Decision, signature: str) -> None:
    """Take in what the people of a site decided. When the last site approves, the request is approved.

    Raises
    ------
    RequestError : the request is unknown to this site, is past deciding, is another one, or the site's key did not sign
    StorageError : it cannot be kept
    """
    with store.change() as change:
        request, asked = _asked(change.session, site, request_id)
        key = change.session.get_one(Site, site).signing_key
        if decision.digest != request.digest:
            raise RequestError(f"the decision is of another request of the id '{request_id}': its digest differs")
        if not is_signed(decision.text(), signature, key):
            raise RequestError(f"the decision of '{request_id}' is not signed with the key of '{site}'")
        text = decision.text().decode()
        if (asked.decision, asked.signature) == (text, signature):
            return
        if request.state not in DECIDABLE:
            raise RequestError(f"'{request_id}' is {request.state}; there is nothing left to decide")
        if asked.decision and decision.at <= json.loads(asked.decision)["at"]:
            raise RequestError(f"a later decision of '{site}' about '{request_id}' is known already")
        asked.standing, asked.since = decision.standing, now()
        asked.decision, asked.signature, asked.key = text, signature, key
        change.session.flush()
        standings = set(change.session.scalars(select(Participant.standing).where(Participant.request == request_id)))
        moved = ""
        if request.state == State.DRAFTED and standings == {"approved"}:
            moved = _move(change, request, State.APPROVED, f"site {site}", "every site approved")
        elif request.state == State.APPROVED and standings != {"approved"}:
            moved = _move(change, request, State.DRAFTED, f"site {site}", f"{site} {decision.standing} it")
        about = {"request": request_id, "site": site, "standing": str(decision.standing), "by": decision.by}
        change.log("request decided", **about, **({"now": moved} if moved else {}))


def move(store: Store, request_ids: Sequence[str], after: State, by: str, why: str, run: str = "") -> list[str]:
    """Let requests, which one run carries out together, take a step; returns those that had not taken it yet.

    Raises
    ------
    RequestError : one of them is unknown, or the step does not follow from where it stands
    StorageError : it cannot be kept
    """
    with store.change() as change:
        moved = step(change, request_ids, after, by, why, run)
        if moved:
            change.log(f"request {after}", requests=moved, by=by, why=why, **({"run": run} if run else {}))
    return moved


def step(change: Change, request_ids: Sequence[str], after: State, by: str, why: str, run: str = "") -> list[str]:
    """Let requests take a step inside of a change that tells of it; returns those that had not taken it yet.

    Raises
    ------
    RequestError : as `move`
    """
    found = [_found(change.session, request_id) for request_id in request_ids]
    moving = [request for request in found if request.state != after]
    for request in moving:
        _move(change, request, after, by, why)
        request.run = run or request.run
    return [request.id for request in moving]


def status(store: Store, request_id: str) -> RequestStatus:
    """Where a request stands.

    Raises
    ------
    RequestError : there is none of this id
    """
    with store.reading() as session:
        _found(session, request_id)
        return _statuses(session, Request.id == request_id)[0]


def statuses(store: Store) -> list[RequestStatus]:
    """Where every request stands, the latest first."""
    with store.reading() as session:
        return sorted(_statuses(session), key=lambda one: one.moves[-1].at, reverse=True)


def concerned(store: Store, site: str) -> list[RequestStatus]:
    """Where those requests stand that concern a site, or that it drafted."""
    mine = select(Participant.request).where(Participant.site == site)
    with store.reading() as session:
        return _statuses(session, Request.id.in_(mine) | (Request.drafted_by == f"site {site}"))


def withdraw(change: Change, site: str, by: str) -> list[str]:
    """Take back what a site decided of requests that have not run, inside of a change that tells of it; returns their ids."""
    waiting = select(Request.id).where(Request.state.in_((State.DRAFTED, State.APPROVED)))
    chosen = select(Participant).where(
        Participant.site == site, Participant.request.in_(waiting), Participant.standing != PENDING
    )
    found = list(change.session.scalars(chosen.order_by(Participant.request)))
    for asked in found:
        asked.standing, asked.decision, asked.signature, asked.key, asked.since = PENDING, "", "", "", now()
        request = change.session.get_one(Request, asked.request)
        if request.state == State.APPROVED:
            _move(change, request, State.DRAFTED, by, f"{site} is let in no more")
    return [asked.request for asked in found]


def of_run(store: Store, run: str) -> list[str]:
    """Ids of the requests that a run carries out."""
    with store.reading() as session:
        return list(session.scalars(select(Request.id).where(Request.run == run).order_by(Request.id)))


def check_running(store: Store, run: str) -> None:
    """Let a run pass that may be carried out, or go on.

    Raises
    ------
    RequestError : the store knows no such run, or one of its requests is not running
    """
    found = of_run(store, run)
    if not found:
        raise RequestError(f"the store knows no run '{run}': excise server run begins one")
    for request_id in found:
        state = status(store, request_id).state
        if state is not State.RUNNING:
            raise RequestError(f"'{request_id}' is {state}: there is nothing to go on with")


def approvals(store: Store, request_id: str) -> list[Participant]:
    """What each site decided of a request, with signatures, by name."""
    with store.reading() as session:
        chosen = select(Participant).where(Participant.request == request_id).order_by(Participant.site)
        return list(session.scalars(chosen))


def _move(change: Change, request: Request, after: State, by: str, why: str) -> str:
    check_move(request.id, State(request.state), after)
    at = now()
    change.session.add(Move(request=request.id, before=request.state, after=after, by=by, why=why, at=at))
    request.state, request.since = after, at
    return str(after)


def _found(session: Session, request_id: str) -> Request:
    request = session.get(Request, request_id, with_for_update=True)
    if request is None:
        known = list(session.scalars(select(Request.id)))
        raise RequestError(
            f"no request '{request_id}'; {did_you_mean(request_id, known) if known else 'none was drafted yet'}"
        )
    return request


def _asked(session: Session, site: str, request_id: str) -> tuple[Request, Participant]:
    asked = session.get(Participant, (request_id, site))
    if asked is None:  # the same words whether there is such a request or not
        raise RequestError(f"no request '{request_id}' concerns '{site}'")
    return session.get_one(Request, request_id), asked


def _statuses(session: Session, *where: ColumnElement[bool]) -> list[RequestStatus]:
    """Where requests stand, by id. However many there are, the store is asked as often as for one."""
    asked, moves = defaultdict[str, list[Row[str, str, str, str]]](list), defaultdict[str, list[Move]](list)
    chosen = select(Participant.request, Participant.site, Participant.standing, Participant.since).join(Request)
    for row in session.execute(chosen.where(*where).order_by(Participant.site)):
        asked[row.request].append(row)
    for move in session.scalars(select(Move).join(Request).where(*where).order_by(Move.id)):
        moves[move.request].append(move)
    revoked = set(session.scalars(select(Site.name).where(Site.state == SiteState.REVOKED)))
    found = session.scalars(select(Request).where(*where).order_by(Request.id))
    return [_status(request, asked[request.id], moves[request.id], revoked) for request in found]


def _status(
    request: Request, asked: Sequence[Row[str, str, str, str]], moves: Sequence[Move], revoked: set[str]
) -> RequestStatus:
    pending = [one for one in asked if one.standing == PENDING]
    waits: tuple[str, ...] = (COORDINATOR,)
    since = request.since
    if request.state == State.DRAFTED and pending:
        waits = tuple(f"{one.site} (revoked)" if one.site in revoked else one.site for one in pending)
        since = min(one.since for one in pending)
    elif request.state in ENDS:
        waits = ()
    return RequestStatus(
        ForgetRequest.from_json(request.document),
        State(request.state),
        since,
        request.run,
        waits,
        {one.site: one.standing for one in asked},
        tuple(moves),
    )
