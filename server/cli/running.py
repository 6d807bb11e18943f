"""Keeping a coordinator up, carrying requests out, and telling how things stand."""

from __future__ import annotations

import getpass
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.common.terminal import tell
from excise.server.cli.shared import AsJson, By, RunName, ServerToml, say, server

TOLD = ("round", "number", "site", "sites", "connected", "of", "code", "candidate", "digest", "message")
"""Details of events that are shown as they happen; the others are in the run's events.jsonl."""


@server.command()
def up(
    dashboard: Annotated[bool, typer.Option("--dashboard", help="With the dashboard, where server.toml says.")] = False,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Run the coordinator until stopped; what dies is started again. Refused while the audit log is not as it was written."""
    from excise.server.config import read_server_config
    from excise.server.deploy import check_store, supervisor_of

    at = server_toml.absolute()
    supervisor = supervisor_of(at, read_server_config(at), tell, dashboard)
    supervisor.run(first=lambda: check_store(at, dashboard))


@server.command()
def status(server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """What runs, which sites are alive, and which request waits for whom since when."""
    from excise.server.life import ENDS
    from excise.server.standing import standing

    told = standing(server_toml)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    if told["processes"] is None:
        say("The coordinator was never up: excise server up")
    for name, unit in (told["processes"] or {}).items():
        since = datetime.fromtimestamp(unit["since"]).astimezone()
        how = f"up since {since:%Y-%m-%d %H:%M:%S}" if unit["running"] else f"down: {unit['reason'] or 'stopped'}"
        say(f"{name}: {how}, started again {unit['restarts']} times")
    for site in told["sites"]:
        runs = f"; runs model {site['model']}" if site["model"] else ""
        if site["model"] and told["model"] and site["model"] != told["model"]:
            runs += f", model {told['model']} is in use"
        say(f"site {site['name']}: since {site['since']} {site['told']}{runs}")
    if not told["sites"]:
        say("No site was invited yet: excise server invite SITE")
    say(f"model in use: {told['model'] or 'none yet, excise server model FILE'}")
    for request in told["requests"]:
        waits = f", waits for {', '.join(request['waits_for'])}" if request["waits_for"] else ""
        end = ", is at its end" if request["state"] in ENDS else ""
        if request["abandoned"]:
            resume = f"excise server resume {request['run']}"
            say(f"request {request['id']}: {request['how']}, nobody carries it out since {request['since']}: {resume}")
        else:
            say(f"request {request['id']}: {request['how']}{waits or end} since {request['since']}")
        if request["denied_by"]:
            say(f"    denied by {', '.join(request['denied_by'])}")
        if request["last"]:
            say(f"    {request['last']}")


@server.command()
def run(
    request: Annotated[list[str], typer.Argument(metavar="REQUEST...", help="Ids of one request, or of several at once.")],
    by: By,
    settings: Annotated[
        Path | None,
        typer.Option(help="TOML with tables unlearning, composition, rounds or verification, in place of the preset's."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every random number that the coordinator draws.")] = 0,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Carry out requests that every site approved, from the model in use."""
    from excise.server.config import read_server_config, store_of
    from excise.server.launch import prepare

    with store_of(server_toml) as store:
        config = read_server_config(server_toml)
        folder = prepare(store, server_toml.parent, config, request, settings, seed, by)
    _carry_out(server_toml, folder)


@server.command()
def resume(
    run: RunName,
    by: Annotated[str, typer.Option("--by", help="Who lets it go on; who runs the command without.")] = "",
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Let a run go on from its last whole round, whatever it was that ended it."""
    from excise.server.config import read_server_config

    _carry_out(server_toml, read_server_config(server_toml).runs / run, by or getpass.getuser())


@server.command()
def stop(run: RunName, by: By, server_toml: ServerToml = Path("server.toml")) -> None:
    """Stop a run, whoever started it. What was done is kept, and it can be resumed."""
    from excise.server.launch import stop as end

    stopped = end(server_toml, run, by)
    tell(f"'{run}' is stopped: excise server resume {run}" if stopped else f"'{run}' is not under way")


def _carry_out(server_toml: Path, folder: Path, resumed_by: str = "") -> None:
    from excise.server.launch import carry_out

    def told(event: dict[str, Any]) -> None:
        tell(f"{event['at'][11:19]} {summary(event)}")

    carry_out(server_toml, folder, told, resumed_by, lambda: tell(f"run '{folder.name}': started"))
    tell(f"{folder / 'evidence.html'} tells what was done and measured; the sites are asked to sign it: excise site sign")
    tell(f"Then: excise server verify {folder.name}, excise server promote {folder.name}")


def summary(event: dict[str, Any]) -> str:
    """An event in one line."""
    details = ", ".join(f"{name} {_in_words(value)}" for name, value in event.items() if name in TOLD and value != [])
    return f"{event['event'].replace('_', ' ')} {details}".rstrip()


def _in_words(value: Any) -> str:
    """A list, or what is told by name, as its names."""
    return ", ".join(map(str, value)) if isinstance(value, list | dict) else str(value)
