"""What the commands of a coordinator share: the group that they stand in, and their common options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

server = typer.Typer(no_args_is_help=True, help="A coordinator's side: who takes part, what is asked, and what runs.")
results = Console()
WHOLE = 25
"""Characters that a column which others give way to has at least, if it needs them."""
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


def print_list(columns: Sequence[str], rows: Sequence[Sequence[str]], whole: str) -> None:
    """Print a table in which nothing is cut off: a cell that is too wide goes on in the next line.

    Parameters
    ----------
    whole : the column that others give way to, so that what stands in it can be copied
    """
    table, longest = Table(), [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for column, most in zip(columns, longest, strict=True):
        room = results.width - (sum(longest) - most) - 3 * len(columns) - 1  # what the others and the lines between leave
        table.add_column(column, overflow="fold", width=min(most, max(room, WHOLE)) if column == whole else None)
    for row in rows:
        table.add_row(*map(escape, row))
    results.print(table)


def local(at: str) -> str:
    """A time of the store, ISO 8601, as the clock on the wall has it; of another year the day alone.

    >>> local("2019-05-06T12:00:00+00:00")
    '2019-05-06'
    """
    told, now = datetime.fromisoformat(at).astimezone(), datetime.now().astimezone()
    return f"{told:%m-%d %H:%M}" if told.year == now.year else f"{told:%Y-%m-%d}"


def say(text: str) -> None:
    """A result as it is: neither wrapped nor read as markup."""
    results.print(text, soft_wrap=True, markup=False, highlight=False)
