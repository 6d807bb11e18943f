"""What the commands of a coordinator share: the group that they stand in, and their common options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

server = typer.Typer(no_args_is_help=True, help="A coordinator's side: who takes part, what is asked, and what runs.")
results = Console()
ServerToml = Annotated[Path, typer.Option("--server", help="The coordinator's configuration.", envvar="EXCISE_SERVER")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
By = Annotated[str, typer.Option("--by", help="Who decides: a name that can be asked later.", prompt="Your name")]
Why = Annotated[str, typer.Option("--why", help="The reason; it stands in the evidence and in the audit log.", prompt="Why")]
SiteName = Annotated[str, typer.Argument(metavar="SITE", help="Its name, as in its site.toml.")]
RequestName = Annotated[str, typer.Argument(metavar="REQUEST", help="Its id.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of its folder: the request's id, or those that it joins.")]


@server.callback()
def private() -> None:
    """A coordinator's side: who takes part, what is asked, and what runs."""
    os.umask(0o077)  # whatever a command writes is its user's alone


def say(text: str) -> None:
    """A result as it is: neither wrapped nor read as markup."""
    results.print(text, soft_wrap=True, markup=False, highlight=False)
