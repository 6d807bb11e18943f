"""The command line: it mounts the faces of the house and turns errors into messages and exit codes."""

from __future__ import annotations

import sys

import typer

from excise.common.errors import ExciseError
from excise.simulations.cli import app as simulations

app = typer.Typer(
    name="excise",
    help="Cut what must be forgotten out of a deployed medical-imaging model, across hospitals, without moving data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.registered_commands += simulations.registered_commands
app.registered_groups += simulations.registered_groups


@app.callback()
def excise() -> None:
    """Keep `simulate` a named command even while it stands alone."""


def main() -> None:
    """Entry point of the `excise` command."""
    try:
        app()
    except ExciseError as error:
        typer.secho(f"excise: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
