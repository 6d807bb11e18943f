"""What a coordinator does from a page. Each action is the same function that the command line calls, by the user's name.

A form carries the state of the request that it was shown for: when that is another by now, somebody else was quicker, and the
action is refused. What cannot be undone by the next click asks for the password again.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from excise.common.errors import ConfigError, RequestError
from excise.common.naming import refuse_names
from excise.common.request import ForgetRequest
from excise.server import decisions, members
from excise.server.dashboard.access import Access, Acting
from excise.server.dashboard.render import renderer_of
from excise.server.dashboard.runner import Runner
from excise.server.dashboard.sessions import Session
from excise.server.dashboard.shown import shown_of
from excise.server.life import IllegalMove, State
from excise.server.requests import draft, of_run, status
from excise.server.store.leases import Taken

Text = Annotated[str, Form()]
Ticked = Annotated[bool, Form()]
Name = Annotated[str, Form(alias="request")]
actions = APIRouter()
MOMENT = 2.0
"""Seconds within which a decision that somebody else is about to make is made."""
_one_runner = threading.Lock()
"""Held while the runner of an application is made: it tells what is started twice, so there is one."""


@actions.post("/check/request")
def check_request(request: Request, session: Acting, kind: Text, where: Text = "", names_patients: Ticked = False) -> Response:
    """Whether a rule can be read and names no patient, as it is typed; where it cannot, at which place and why."""
    shown = renderer_of(request)
    if not where.strip():
        return shown.fragment("said.html", text="a rule is missing")
    try:
        made = _request(id="checked", kind=kind, where=where, reason="checked")
        _check_names(made, names_patients)
    except RequestError as error:
        return shown.fragment("said.html", text=str(error))
    return shown.fragment("said.html", kind="good", text="The rule can be read. Each site tells how many images it matches.")


@actions.post("/do/draft")
def do_draft(
    request: Request,
    session: Acting,
    id: Text,  # noqa: A002 - the field is called as in a request's file
    kind: Text,
    where: Text,
    reason: Text,
    legal_basis: Text = "",
    sites: Annotated[list[str] | None, Form()] = None,
    probe: Ticked = False,
    names_patients: Ticked = False,
) -> Response:
    """Draft a request, and ask its sites."""
    store, _, _ = shown_of(request).source.coordinator()
    made = _request(
        id=id, kind=kind, where=where, reason=reason, legal_basis=legal_basis, requested_by=session.user, linear_probe=probe
    )
    _check_names(made, names_patients)
    draft(store, made, sites or (), session.user)
    asked = status(store, made.id)
    return _done(request, f"'{made.id}' is {asked.state}; it waits for {', '.join(asked.waits_for)}.")


@actions.post("/do/start")
def do_start(
    request: Request,
    session: Acting,
    name: Name,
    state: Text,
    seed: Annotated[int, Form(ge=0)] = 0,
    settings: Text = "",
    together: Annotated[list[str] | None, Form()] = None,
) -> Response:
    """Carry out an approved request, alone or together with others."""
    _still(request, name, state)
    names = [name, *(together or [])]
    for other in names[1:]:
        _still(request, other, State.APPROVED)
    unknown = _runner(request).start(names, session.user, seed, settings)
    return _unsure(request, unknown) if unknown else _done(request, f"Being carried out: {', '.join(names)}.")


@actions.post("/do/resume")
def do_resume(request: Request, session: Acting, name: Name, state: Text) -> Response:
    """Let a run go on."""
    run = _still(request, name, state)
    store, _, _ = shown_of(request).source.coordinator()
    unknown = _runner(request).resume(run, of_run(store, run), session.user)
    return _unsure(request, unknown) if unknown else _done(request, f"The run '{run}' goes on.")


@actions.post("/do/stop")
def do_stop(request: Request, session: Acting, name: Name, state: Text) -> Response:
    """Stop a run."""
    from excise.server.launch import stop  # here, since it needs torch

    run = _still(request, name, state)
    source = shown_of(request).source
    source.coordinator()
    assert source.toml is not None
    stopped = stop(source.toml, run, session.user)
    return _done(request, f"The run '{run}' is stopped." if stopped else f"The run '{run}' was not under way.")


@actions.post("/do/approve")
def do_approve(
    request: Request,
    session: Acting,
    name: Name,
    state: Text,
    digest: Text,
    why: Text,
    password: Text,
    override: Text = "",
) -> Response:
    """Find the evidence complete, where nobody did yet, and use the revised model from now on."""
    run = _decidable(request, session, name, state, password)
    store, folder, config = shown_of(request).source.coordinator()
    view = shown_of(request).view(run)
    if view is None or view["digests"]["after"] != digest:
        raise RequestError(f"the revised model of '{run}' is another one than the page showed: load the page anew")
    reason = _reason(why)
    try:
        if state == "candidate":
            from excise.server.evidence import verify  # here, since it needs torch

            verify(store, folder, config, run, session.user, override.strip())
        used = decisions.promote(store, folder, config, run, session.user, reason)
    except IllegalMove:
        raise _quicker(request, name) from None
    if used.again:
        raise _quicker(request, name)
    promoted = ", ".join(of_run(store, run))
    return _done(request, f"Model {used.version} is in use: sites get it by excise site fetch. Promoted: {promoted}.")


@actions.post("/do/reject")
def do_reject(request: Request, session: Acting, name: Name, state: Text, why: Text, password: Text) -> Response:
    """Carry a request out no more, or do not use what came of it; with it, whatever its run carries out."""
    _decidable(request, session, name, state, password)
    store, _, _ = shown_of(request).source.coordinator()
    try:
        rejected = decisions.reject(store, name, session.user, _reason(why))
    except IllegalMove:
        raise _quicker(request, name) from None
    except Taken:  # it runs, or somebody else is just deciding of it
        ends = time.monotonic() + MOMENT
        while time.monotonic() < ends:
            _still(request, name, state)
            time.sleep(0.1)
        raise
    if not rejected:
        raise _quicker(request, name)
    told = ", ".join(f"'{one}'" for one in rejected)
    return _done(request, f"{told} {'is' if len(rejected) == 1 else 'are'} rejected.")


@actions.post("/do/rollback")
def do_rollback(
    request: Request,
    session: Acting,
    name: Name,
    state: Text,
    version: Annotated[int, Form()],
    why: Text,
    password: Text,
) -> Response:
    """Leave the model in use for the one that it was made of."""
    run = _decidable(request, session, name, state, password)
    store, folder, config = shown_of(request).source.coordinator()
    back = decisions.leave(store, folder, config, version, session.user, _reason(why))
    if back.again:
        raise _quicker(request, name)
    said = f"Model {back.version} is in use again. Rolled back: {', '.join(of_run(store, run))}."
    return _done(request, " ".join([said, back.warning]).strip())


@actions.post("/do/invite")
def do_invite(request: Request, session: Acting, site: Text) -> Response:
    """Make an invite, which is shown once."""
    store, folder, config = shown_of(request).source.coordinator()
    made = members.invite(store, folder, config, site, session.user)
    return renderer_of(request).fragment("_invite.html", site=site, invite=made, text=made.to_toml())


@actions.post("/do/admit")
def do_admit(request: Request, session: Acting, site: Text, fingerprint: Text) -> Response:
    """Let a site in whose fingerprint was compared."""
    store, _, _ = shown_of(request).source.coordinator()
    try:
        members.admit(store, site, fingerprint.strip(), session.user)
    except ConfigError as error:
        command = f"excise server revoke {site}"
        raise ConfigError(str(error).replace(command, f"press Revoke… beside it, or {command}")) from None
    return _done(request, f"'{site}' is let in.")


@actions.post("/do/revoke")
def do_revoke(request: Request, session: Acting, site: Text, password: Text) -> Response:
    """Let a site in no more."""
    _confirmed(request, session, password)
    store, _, _ = shown_of(request).source.coordinator()
    members.revoke(store, site, session.user)
    return _done(request, f"'{site}' is let in no more.")


def _still(request: Request, name: str, state: str) -> str:
    """The run of a request that is as the form was shown for.

    Raises
    ------
    RequestError : it is not, by now; says how it is, since when and by whom
    """
    store, _, _ = shown_of(request).source.coordinator()
    now = status(store, name)
    if now.state != state:
        raise _quicker(request, name)
    return now.run


def _quicker(request: Request, name: str) -> RequestError:
    """What to tell whoever decides of a request of which somebody else decided already."""
    store, _, _ = shown_of(request).source.coordinator()
    now = status(store, name)
    last = now.moves[-1]
    return RequestError(f"'{name}' is {now.state} by now, since {last.at} by {last.by}: load the page anew")


def _decidable(request: Request, session: Session, name: str, state: str, password: str) -> str:
    """The run of a request that is as the form was shown for, once the password was said again, which takes its time.

    Raises
    ------
    RequestError : as `_still`
    Refused : the password is wrong
    """
    _still(request, name, state)
    _confirmed(request, session, password)
    return _still(request, name, state)


def _request(**fields: object) -> ForgetRequest:
    return ForgetRequest.from_json(json.dumps({key: value for key, value in fields.items() if value}))


def _check_names(made: ForgetRequest, ticked: bool) -> None:
    if not ticked:
        refuse_names(made.predicate, "tick that the rule names patients")


def _reason(why: str) -> str:
    if not why.strip():
        raise RequestError("a reason is missing: it stands in the evidence and in the audit log")
    return why.strip()


def _confirmed(request: Request, session: Session, password: str) -> None:
    access: Access = request.app.state.access
    access.confirm(session, password)


def _runner(request: Request) -> Runner:
    source = shown_of(request).source
    _, _, config = source.coordinator()
    assert source.toml is not None
    with _one_runner:
        made: Runner = request.app.state.runner or Runner(source.toml, config)
        request.app.state.runner = made
    return made


def _done(request: Request, text: str) -> Response:
    return renderer_of(request).fragment("said.html", kind="good", text=text)


def _unsure(request: Request, text: str) -> Response:
    return renderer_of(request).fragment("said.html", kind="warn", text=text)
