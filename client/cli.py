"""`excise site`: what a hospital engineer does beside the images."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from excise.client.config import read_site_config
from excise.common.terminal import progress, tell

site = typer.Typer(no_args_is_help=True, help="A hospital's side: its images, and what may leave of them.")
results = Console()
TITLES = {"scan": "Looking through the folder", "prepare": "Preparing images"}
SiteToml = Annotated[Path, typer.Option("--site", help="The site's configuration.", envvar="EXCISE_SITE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@site.command()
def scan(
    site_toml: SiteToml = Path("site.toml"),
    problems: Annotated[bool, typer.Option("--problems", help="List every file that is skipped, with its reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """Index the images, prepare those that are new or changed, and tell what there is. Nothing leaves the site."""
    from excise.client.images import load_images
    from excise.client.sources import index_of
    from excise.client.summary import summarise

    config = read_site_config(site_toml)
    with progress(TITLES) as report:
        if config.data.source == "dicom":
            index_of(config).scan(lambda found, read: report("scan", read, found, ""))
        found, _ = load_images(config, lambda done, total: report("prepare", done, total, ""))
    summary = summarise(found)
    skipped = [(problem.item, problem.reason) for problem in found.problems]
    if as_json:
        told = {**summary, "problems": [{"item": item, "reason": reason} for item, reason in skipped]} if problems else summary
        typer.echo(json.dumps(told, indent=2))
        return
    _print_summary(summary)
    if problems:
        for item, reason in skipped:
            results.print(f"{item}: {reason}", soft_wrap=True, markup=False, highlight=False)
    elif skipped:
        for reason, count in Counter(reason for _, reason in skipped).most_common(5):
            tell(f"skipped {count}: {reason}")
        tell("Every skipped file and its reason: excise site scan --problems")


def _print_summary(summary: dict[str, dict[str, int]]) -> None:
    total = summary["total"]
    results.print(
        f"{total['images']:,} images of {total['patients']:,} patients; {total['skipped']:,} skipped", highlight=False
    )
    table = Table()
    for column in ("", "", "images"):
        table.add_column(column, justify="right" if column else "left")
    for name, counts in summary.items():
        if name == "total":
            continue
        for i, (value, count) in enumerate(counts.items()):
            table.add_row(name if i == 0 else "", value, f"{count:,}", end_section=i == len(counts) - 1)
    results.print(table)
