"""`excise evidence`: what a third party does with a file of evidence and public keys, and nothing else of excise."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from excise.common.errors import ConfigError, DataError, QuorumError
from excise.common.evidence import check, read_evidence, signers

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
    """Check every signature, digest and approval in a file of evidence.

    Exit code 2 when something is not right, 4 when all is right that is there and sites have not signed yet. Keys are told by
    their owners: excise server keys, excise site keys.
    """
    pack = read_evidence(file)
    known = dict(_named(one, signers(pack)) for one in key or [])
    found = check(pack, known)
    if as_json:
        typer.echo(json.dumps([{"good": one.good, "told": one.told} for one in found], indent=2))
    else:
        for one in found:
            typer.echo(f"{one.mark} {one.told}")
    awaited = tuple(one.awaited for one in found if one.awaited)
    if sum(one.good is False for one in found) > len(awaited):
        raise DataError(f"{file} is not as it was signed")
    if awaited:
        raise QuorumError(f"{file} is not signed yet by {', '.join(awaited)}; what is signed is as it was signed", awaited)


def _named(text: str, signers: Sequence[str]) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not re.fullmatch("[0-9a-f]{64}", value := value.strip().lower()):
        raise ConfigError(f"expected --key NAME=HEX, HEX being the 64 digits of a public key, got '{text}'")
    if name not in signers:
        raise ConfigError(f"--key {name}=…: no '{name}' is in the evidence; expected one of {', '.join(signers)}")
    return name, value
