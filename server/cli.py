"""`excise server`: what a coordinator does."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.supervisor import read_status
from excise.common.terminal import tell

server = typer.Typer(no_args_is_help=True, help="A coordinator's side: who takes part, and what runs.")
ServerToml = Annotated[Path, typer.Option("--server", help="The coordinator's configuration.", envvar="EXCISE_SERVER")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SiteName = Annotated[str, typer.Argument(metavar="SITE", help="Its name, as in its site.toml.")]


@server.callback()
def private() -> None:
    """A coordinator's side: who takes part, and what runs."""
    os.umask(0o077)  # whatever a command writes is its user's alone


@server.command()
def init(
    name: Annotated[str, typer.Option(help="Letters, digits and hyphens.", prompt="Name of the coordinator")],
    host: Annotated[
        list[str], typer.Option(help="A name or address that sites reach it by; the first is written into invites.")
    ],
    port: Annotated[int, typer.Option(help="Where sites connect.")] = 8443,
    link_port: Annotated[int, typer.Option(help="Of Flower's SuperLink, on loopback.")] = 18000,
    folder: Annotated[Path, typer.Option(help="Folder of the coordinator, which is made.")] = Path(),
) -> None:
    """Make a coordinator: server.toml, an authority of its own, and keys, which never leave."""
    from excise.common.invite import fingerprint_of
    from excise.server.setup import AUTHORITY
    from excise.server.setup import init as make

    config = make(folder, name, host, port, link_port)
    tell(f"{folder / 'server.toml'} is written. Sites will connect to {config.address}.")
    tell(f"Fingerprint, to be told to each hospital by telephone: {fingerprint_of((folder / AUTHORITY).read_text())}")
    tell("Next: excise server invite SITE, then excise server up")


@server.command()
def invite(
    site: SiteName,
    to: Annotated[Path | None, typer.Option(help="The file to write; SITE.toml without.")] = None,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Write an invite, to be sent to a hospital. It holds no secret; its fingerprint has to be told by another way too."""
    from excise.server.config import read_server_config
    from excise.server.setup import invite as make

    made = make(server_toml.parent, read_server_config(server_toml), site)
    path = to or Path(f"{site}.toml")
    if path.exists():
        raise ConfigError(f"{path} exists already: move it away, or name another file with --to")
    write_atomically(path, made.to_toml())
    tell(f"{path} is written: send it to {site}. Tell them by telephone: {made.fingerprint}")


@server.command()
def renew(server_toml: ServerToml = Path("server.toml")) -> None:
    """A new certificate of the server, or one of other hosts in server.toml; sites believe it without a new invite."""
    from excise.server.config import read_server_config
    from excise.server.setup import renew as make

    make(server_toml.parent, read_server_config(server_toml))
    tell("The server has a new certificate: stop excise server up, and start it again")


@server.command()
def admit(
    site: SiteName,
    key: Annotated[Path, typer.Argument(metavar="KEY", help="Its keys/node.pub, as its engineer sent it.")],
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Let a site connect."""
    from excise.server.registrar import admit as let_in

    let_in(server_toml.parent, site, key)
    tell(f"'{site}' may connect")


@server.command()
def revoke(site: SiteName, server_toml: ServerToml = Path("server.toml")) -> None:
    """Let a site connect no more."""
    from excise.server.registrar import revoke as let_out

    let_out(server_toml.parent, site)
    tell(f"'{site}' may connect no more")


@server.command()
def up(server_toml: ServerToml = Path("server.toml")) -> None:
    """Run the coordinator until stopped; what dies is started again."""
    from excise.server.config import read_server_config
    from excise.server.deploy import supervisor_of

    at = server_toml.absolute()
    supervisor_of(at, read_server_config(at), tell).run()


@server.command()
def status(server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """What runs, and which sites are let in and online."""
    from excise.server.config import read_server_config
    from excise.server.registrar import sites_of

    config = read_server_config(server_toml)
    running, sites = read_status(config.state), sites_of(server_toml.parent, config)
    if as_json:
        typer.echo(json.dumps({"processes": asdict(running) if running else None, "sites": sites}, indent=2))
        return
    if running is None:
        typer.echo("The coordinator was never up: excise server up")
    for name, unit in (running.units if running else {}).items():
        since = datetime.fromtimestamp(unit.since).astimezone()
        told = f"up since {since:%Y-%m-%d %H:%M:%S}" if unit.running else f"down: {unit.reason or 'stopped'}"
        typer.echo(f"{name}: {told}, started again {unit.restarts} times")
    for site, online in sites.items():
        typer.echo(f"site {site}: {'online' if online else 'not connected'}")
    if not sites:
        typer.echo("No site is let in: excise server admit SITE KEY")


@server.command()
def run(
    request: Annotated[list[Path], typer.Argument(metavar="REQUEST...", help="Files of one request, or of several at once.")],
    weights: Annotated[Path, typer.Option("--model-weights", help="The deployed model, safetensors.")],
    classes: Annotated[int, typer.Option(min=1, help="Classes of the model; labels with --multi-label.")],
    model: Annotated[str, typer.Option(help="Its architecture.")] = "allcnn",
    size: Annotated[int, typer.Option(min=16, help="Side of its images, pixels.")] = 32,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 grey, 3 colour.")] = 1,
    width: Annotated[float, typer.Option(help="Of allcnn: its width.")] = 1.0,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="An image has any number of labels.")] = False,
    settings: Annotated[
        Path | None, typer.Option(help="TOML with tables unlearning, composition or rounds, in place of the preset's.")
    ] = None,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Carry out requests at every site that is let in. Each site's people have to approve them there."""
    from excise.common.models import ModelSpec
    from excise.common.request import ForgetRequest
    from excise.server.config import read_server_config
    from excise.server.launch import prepare
    from excise.server.registrar import keys_of

    config = read_server_config(server_toml)
    spec = ModelSpec(name=model, classes=classes, size=size, channels=channels, width=width, multi_label=multi_label)
    asked = [ForgetRequest.from_toml(path) for path in request]
    folder = prepare(config, asked, spec, weights, list(keys_of(server_toml.parent)), settings)
    _carry_out(server_toml, folder)


@server.command()
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of its folder.")],
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Let a run go on from its last whole round, whatever it was that ended it."""
    from excise.server.config import read_server_config

    _carry_out(server_toml, read_server_config(server_toml).runs / run)


def _carry_out(server_toml: Path, folder: Path) -> None:
    from excise.server.config import read_server_config
    from excise.server.launch import carry_out

    def told(event: dict[str, Any]) -> None:
        details = ", ".join(f"{name} {_in_words(value)}" for name, value in event.items() if name in TOLD and value != [])
        tell(f"{event['at'][11:19]} {event['event'].replace('_', ' ')} {details}".rstrip())

    tell(f"run '{folder.name}': started")
    carry_out(server_toml.parent, read_server_config(server_toml), folder, told)
    tell(f"{folder / 'model.safetensors'} is the revised model; what was measured is in {folder / 'metrics.json'}")


def _in_words(value: Any) -> str:
    """A list, or what is told by name, as its names."""
    return ", ".join(map(str, value)) if isinstance(value, list | dict) else str(value)


TOLD = ("round", "number", "site", "sites", "connected", "of", "code", "candidate", "digest", "message")
"""Details of events that are shown as they happen; the others are in the run's events.jsonl."""
