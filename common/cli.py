"""`excise evidence`: what a third party does with a file of evidence and public keys, and nothing else of excise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from excise.common.errors import ConfigError, DataError
from excise.common.evidence import check, read_evidence

evidence = typer.Typer(no_args_is_help=True, help="Evidence of an unlearning, as a third party checks it.")


@evidence.callback()
def group() -> None:
    """Evidence of an unlearning, as a third party checks it."""


@evidence.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An evidence.json.")],
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="A public key that you know by another way: coordinator=HEX, or SITE=HEX; several times."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check every signature, digest and approval in a file of evidence. Exit code 2 when something is not right."""
    known = dict(_named(one) for one in key or [])
    found = check(read_evidence(file), known)
    if as_json:
        typer.echo(json.dumps([{"good": one.good, "told": one.told} for one in found], indent=2))
    else:
        for one in found:
            typer.echo(f"{one.mark} {one.told}")
    if any(one.good is False for one in found):
        raise DataError(f"{file} is not as it was signed")


def _named(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise ConfigError(f"expected --key NAME=HEX, got '{text}'")
    return name, value.lower()
