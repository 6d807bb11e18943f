"""Users of the dashboard: who may sign in there, and as what."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from excise.common.errors import ConfigError
from excise.common.terminal import tell
from excise.server.cli.shared import AsJson, By, ServerToml, results, server
from excise.server.roles import Role

user = typer.Typer(no_args_is_help=True, help="Users of the dashboard: viewers see, coordinators act.")
server.add_typer(user, name="user")
UserName = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and . _ - @, at most 64.")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input: its first line.")]


@user.command()
def add(
    name: UserName,
    role: Annotated[Role, typer.Option(help="What the user may do.")],
    by: By,
    password_stdin: FromStdin = False,
    server_toml: ServerToml = Path("server.toml"),
) -> None:
    """Let somebody sign in at the dashboard; asks for the password, twice."""
    from excise.server.config import store_of
    from excise.server.users import add as let_in
    from excise.server.users import check_new

    with store_of(server_toml) as store:
        check_new(store, name)  # before anybody thinks of a password
        let_in(store, name, role, _password(name, password_stdin), by)
    tell(f"'{name}' may sign in as {role}")


@user.command("list")
def list_users(server_toml: ServerToml = Path("server.toml"), as_json: AsJson = False) -> None:
    """Who may sign in."""
    from excise.server.config import store_of
    from excise.server.users import users

    with store_of(server_toml) as store:
        found = users(store)
    if as_json:
        typer.echo(json.dumps([{"name": one.name, "role": one.role, "since": one.since} for one in found], indent=2))
        return
    table = Table()
    for column in ("user", "role", "added, or last new password"):
        table.add_column(column)
    for one in found:
        table.add_row(one.name, one.role, one.since)
    results.print(table)


@user.command()
def remove(name: UserName, by: By, server_toml: ServerToml = Path("server.toml")) -> None:
    """Let somebody sign in no more; whoever is signed in by that name is so no more."""
    from excise.server.config import store_of
    from excise.server.users import remove as let_out

    with store_of(server_toml) as store:
        let_out(store, name, by)
    tell(f"'{name}' may sign in no more")


@user.command()
def password(name: UserName, by: By, password_stdin: FromStdin = False, server_toml: ServerToml = Path("server.toml")) -> None:
    """Give a user another password; whoever is signed in by the former is so no more."""
    from excise.server.config import store_of
    from excise.server.users import set_password

    with store_of(server_toml) as store:
        set_password(store, name, _password(name, password_stdin), by)
    tell(f"'{name}' has a new password")


def _password(name: str, from_stdin: bool) -> str:
    """The password that is typed twice and not shown, or the first line of standard input."""
    from excise.server.users import LONGEST, check_usable

    def usable(typed: str) -> str:
        try:
            check_usable(name, typed)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None  # it is asked for again
        return typed

    if not from_stdin:
        asked = typer.prompt("Password", hide_input=True, confirmation_prompt="The same again", err=True, value_proc=usable)
        return str(asked)

    line = sys.stdin.buffer.readline(LONGEST + 3)  # longer than may be, so that it is refused and not cut
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError("the password on standard input is not UTF-8") from None  # the other's text would quote it
