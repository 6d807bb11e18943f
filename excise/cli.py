"""The command line: it mounts the faces of the house and turns errors into messages and exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from excise import __version__
from excise.client.cli import site
from excise.common.cli import evidence
from excise.common.errors import ExciseError
from excise.server.cli import server
from excise.server.cli.dashboard import app as dashboard
from excise.server.cli.pdf import app as pdf
from excise.simulations.cli import app as simulations

app = typer.Typer(
    name="excise",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.registered_commands += simulations.registered_commands
app.registered_commands += dashboard.registered_commands
app.registered_commands += pdf.registered_commands
app.registered_groups += simulations.registered_groups
app.add_typer(site, name="site")
app.add_typer(server, name="server")
app.add_typer(evidence, name="evidence")


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"excise {__version__}")
        raise typer.Exit


@app.callback()
def excise(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Cut what must be forgotten out of a deployed medical-imaging model, across hospitals, without moving data."""


def main() -> None:
    """Entry point of the `excise` command."""
    try:
        app()
    except ExciseError as error:
        typer.secho(f"excise: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
