"""Making a coordinator, and who takes part."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Annotated

import typer

from excise.common.errors import ConfigError
from excise.common.signing import write_secret
from excise.common.terminal import tell
from excise.server.cli.shared import AsJson, By, ServerToml, SiteName, say, server


@server.command()
def init(
    name: Annotated[str, typer.Option(help="Letters, digits and hyphens.", prompt="Name of the coordinator")],
    host: Annotated[
        list[str], typer.Option(help="A name or address that sites reach it by; the first is written into invites.")
    ],
    port: Annotated[int, typer.Option(help="Where sites connect for rounds.")] = 8443,
    api_port: Annotated[int, typer.Option(help="Where they reach the coordinator's own service.")] = 8444,
    link_port: Annotated[int, typer.Option(help="Of Flower's SuperLink, on loopback.")] = 18000,
    folder: Annotated[Path, typer.Option(help="Folder of the coordinator, which is made.")] = Path(),
) -> None:
    """Make a coordinator: server.toml, two authorities, keys, and a store."""
    from excise.common.invite import fingerprint_of
    from excise.server.setup import AUTHORITY
    from excise.server.setup import init as make

    config = make(folder, name, host, port, link_port, api_port)
    tell(f"{folder / 'server.toml'} is written. Sites will connect to {config.address} and {config.api}.")
    tell(f"Fingerprint, to be told to each hospital by telephone: {fingerprint_of((folder / AUTHORITY).read_text())}")
    tell("Next: excise server invite SITE, then excise server up")


@server.command()
def renew(server_toml: ServerToml = Path("server.toml")) -> None:
    """A new certificate of the server, or one of other hosts in server.toml; sites believe it without a new invite."""
    from excise.server.config import read_server_config
    from excise.server.setup import renew as make

    make(server_toml.parent, read_server_config(server_toml))
    tell("The server has a new certificate: stop excise server up, and start it again")


@server.command()
def invite(
    site: SiteName,
    to: Annotated[Path | None, typer.Option(help="The file to write; SITE.toml without.")] = None,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Write an invite, to be sent to a hospital: good for one site, once, for a week."""
    from excise.server.config import read_server_config, store_of
    from excise.server.members import invite as make

    path = to or Path(f"{site}.toml")
    if path.exists():
        raise ConfigError(f"{path} exists already: move it away, or name another file with --to")
    with store_of(server_toml) as store:
        made = make(store, server_toml.parent, read_server_config(server_toml), site, getpass.getuser())
    write_secret(path, made.to_toml().encode())
    tell(f"{path} is written: send it to {site}. It can be used once, until {made.expires}.")
    tell(f"Tell them by telephone: {made.fingerprint}")


@server.command()
def admit(
    site: SiteName,
    fingerprint: Annotated[
        str, typer.Option(help="Of the site's keys, as its engineer tells it by telephone; asked for without.")
    ] = "",
    by: Annotated[str, typer.Option("--by", help="Who decides: a name that can be asked later; asked for without.")] = "",
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Let a site in that joined by its invite, once its fingerprint was compared."""
    from excise.server.config import store_of
    from excise.server.members import admit as let_in
    from excise.server.members import check_asks

    with store_of(server_toml) as store:
        check_asks(store, site)  # before anybody telephones
        fingerprint = fingerprint or typer.prompt("Fingerprint, as told")
        let_in(store, site, fingerprint, by or typer.prompt("Your name"))
    tell(f"'{site}' is let in")


@server.command()
def keys(server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """Public signing keys, the coordinator's and each site's that is let in: what --key of excise evidence verify takes.

    Whoever checks evidence has them told by telephone or letter, each best by its owner: the coordinator by this command, a
    site by excise site keys.
    """
    from excise.common.evidence import COORDINATOR
    from excise.common.signing import public_hex, read_key
    from excise.server.config import store_of
    from excise.server.members import signing_keys
    from excise.server.setup import SIGNING_KEY

    with store_of(server_toml) as store:
        sites = signing_keys(store)
    found = {COORDINATOR: public_hex(read_key(server_toml.parent / SIGNING_KEY)), **sites}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, key in found.items():
        say(f"{name}={key}")


@server.command()
def revoke(
    site: SiteName,
    by: By,
    why: Annotated[str, typer.Option("--why", help="The reason.")] = "",
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Let a site in no more: neither to rounds nor to the coordinator's service."""
    from excise.server.config import store_of
    from excise.server.members import revoke as let_out

    with store_of(server_toml) as store:
        let_out(store, site, by, why)
    tell(f"'{site}' is let in no more")
