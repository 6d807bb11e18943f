"""A page of ours as PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.common.terminal import tell

app = typer.Typer()


@app.command()
def pdf(
    page: Annotated[Path, typer.Argument(help="A run's report.html or evidence.html.")],
    out: Annotated[Path | None, typer.Option(help="The PDF to write; beside the page by default.")] = None,
) -> None:
    """Make a PDF of a report or of evidence; takes some ten seconds. The same page gives the same bytes."""
    from excise.server.pdf import write_pdf

    made = out or page.with_suffix(".pdf")
    write_pdf(page, made)
    tell(f"{made} is written")
