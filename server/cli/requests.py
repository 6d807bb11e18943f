"""Forget requests at the coordinator: draft, list, show, reject; and the log of everything that was decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.common.errors import DataError, RequestError
from excise.common.terminal import tell
from excise.server.cli.shared import AsJson, By, RequestName, ServerToml, Why, local, print_list, say, server

requests = typer.Typer(no_args_is_help=True, help="Forget requests: what is asked, and whom each waits for.")
server.add_typer(requests, name="requests")
audit = typer.Typer(no_args_is_help=True, help="The log of everything that was ever changed.")
server.add_typer(audit, name="audit")


@requests.command()
def draft(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The request (TOML).")],
    by: By,
    sites: Annotated[
        list[str] | None, typer.Option("--site", help="A site that has to approve it; every one without.")
    ] = None,
    names_patients: Annotated[
        bool, typer.Option("--names-patients", help="Take it although it names patients, which every site then reads.")
    ] = False,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Take a request in, and ask the sites that it concerns."""
    from excise.common.naming import refuse_names
    from excise.common.request import ForgetRequest
    from excise.server.config import store_of
    from excise.server.requests import draft as take_in
    from excise.server.requests import status

    request = ForgetRequest.from_toml(file)
    if not names_patients:
        refuse_names(request.predicate, "--names-patients")
    with store_of(server_toml) as store:
        take_in(store, request, sites or (), by)
        told = status(store, request.id)
    if not told.waits_for:
        raise RequestError(f"'{request.id}' is {told.state}, carried out or refused already: choose another id to ask anew")
    tell(f"'{request.id}' is {told.state}; it waits for {', '.join(told.waits_for)}")


@requests.command("list")
def list_requests(server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """Every request: where it stands, whom it waits for, since when. What it asks for: requests show."""
    from excise.server.config import read_server_config, store_of
    from excise.server.requests import statuses
    from excise.server.waiting import awaited, standing_as

    runs = read_server_config(server_toml).runs
    with store_of(server_toml) as store:
        found = [awaited(store, runs, one) for one in statuses(store)]
        how = [standing_as(store, runs, one) for one in found]
    if as_json:
        typer.echo(json.dumps([described(one, word) for one, word in zip(found, how, strict=True)], indent=2))
        return
    rows = [
        (one.request.id, one.request.kind, word, ", ".join(one.waits_for) or "–", local(one.since))
        for one, word in zip(found, how, strict=True)
    ]
    print_list(("request", "kind", "state", "waits for", "since"), rows, whole="request")


@requests.command()
def show(name: RequestName, server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """One request: its text, every step so far, and what each site decided."""
    from excise.server.config import read_server_config, store_of
    from excise.server.requests import status
    from excise.server.waiting import awaited, standing_as

    runs = read_server_config(server_toml).runs
    with store_of(server_toml) as store:
        one = awaited(store, runs, status(store, name))
        how = standing_as(store, runs, one)
    if as_json:
        typer.echo(json.dumps(described(one, how), indent=2))
        return
    say(one.request.to_toml().rstrip())
    say(f"\ndigest    {one.request.digest}\nstate     {how} since {one.since}")
    say(f"waits for {', '.join(one.waits_for) or 'nobody'}")
    for site, standing in one.sites.items():
        say(f"site      {site}: {standing}")
    for move in one.moves:
        say(f"{move.at}  {move.after} by {move.by}{': ' + move.why if move.why else ''}")


@requests.command()
def reject(name: RequestName, by: By, why: Why, server_toml: ServerToml = Path("server.toml")) -> None:
    """Carry a request out no more, or do not use what came of it."""
    from excise.server.config import store_of
    from excise.server.decisions import reject as refuse

    with store_of(server_toml) as store:
        refuse(store, name, by, why)
    tell(f"'{name}' is rejected")


@audit.command("verify")
def verify_audit(server_toml: ServerToml = Path("server.toml")) -> None:
    """Check that no line of the log was altered, removed or moved, at its end neither."""
    from excise.server.config import AUDIT_LOG, store_of
    from excise.server.store.opening import refuse_faults

    log = server_toml.parent / AUDIT_LOG
    with store_of(server_toml) as store:
        if not log.exists():
            raise DataError(f"no log at {log}: nothing was changed yet, or it was taken away")
        found, unmade = store.log_faults(), store.unmade()
    refuse_faults(log, found)
    tell(f"{log}: every line is as it was written")
    if unmade:
        tell("Its last line tells of a change that was not made: its writer was ended, or somebody added the line")


def described(one: Any, how: str) -> dict[str, Any]:
    """A request's status as JSON tells it (`RequestStatus`), and in a word (`waiting.standing_as`)."""
    return {
        "request": json.loads(one.request.to_json()),
        "digest": one.request.digest,
        "state": one.state,
        "how": how,
        "since": one.since,
        "run": one.run,
        "waits_for": list(one.waits_for),
        "sites": one.sites,
        "steps": [
            {"from": move.before, "to": move.after, "by": move.by, "why": move.why, "at": move.at} for move in one.moves
        ],
    }
