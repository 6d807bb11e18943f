"""What the commands of a site share: the group that they stand in, their common options, and how they print."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

site = typer.Typer(no_args_is_help=True, help="A hospital's side: its images, and what may leave of them.")
results = Console()


@site.callback()
def private() -> None:
    """A hospital's side: its images, and what may leave of them."""
    os.umask(0o077)  # whatever a command writes is its user's alone


SiteToml = Annotated[Path, typer.Option("--site", help="The site's configuration.", envvar="EXCISE_SITE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def say(text: str) -> None:
    """A result as it is: neither wrapped nor read as markup."""
    results.print(text, soft_wrap=True, markup=False, highlight=False)


def print_counts(counts_of: Mapping[str, Mapping[str, int]]) -> None:
    """A table of numbers of images by what they are counted by."""
    table = Table()
    for column in ("", "", "images"):
        table.add_column(column, justify="right" if column else "left")
    for name, counts in counts_of.items():
        for i, (value, count) in enumerate(counts.items()):
            table.add_row(name if i == 0 else "", escape(value), f"{count:,}", end_section=i == len(counts) - 1)
    results.print(table)
