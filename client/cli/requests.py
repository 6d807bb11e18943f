"""Deciding about forget requests, trying them, and carrying them through at the site."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from excise.client.cli.shared import AsJson, SiteToml, print_counts, results, say, site
from excise.client.config import read_site_config
from excise.client.lists import names_of
from excise.client.requests import Requests
from excise.common.chain import faults
from excise.common.decision import Standing
from excise.common.errors import ConfigError, DataError, RequestError, did_you_mean
from excise.common.request import ForgetRequest
from excise.common.terminal import tell

requests = typer.Typer(no_args_is_help=True, help="Forget requests that came to this site.")
site.add_typer(requests, name="requests")
RequestName = Annotated[str, typer.Argument(metavar="REQUEST", help="Its id, or a file of it (TOML).")]
By = Annotated[str, typer.Option("--by", help="Who does it: a name that can be asked later.", prompt="Your name")]
READ = "The coordinator reads it, and it stands in the evidence that every participating site sees"
DecidedBy = Annotated[
    str,
    typer.Option(
        "--by", help=f"Who decides: a name that can be asked later. {READ}.", prompt="Your name, as all sites see it"
    ),
]
Note = Annotated[str, typer.Option("--note", help=f"Why. {READ}: name no patient.")]


@requests.command("list")
def list_requests(site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """Every request that came, what was decided of it here, and where it stands at the coordinator, as that told last."""
    kept = Requests(site_toml.parent)
    known = [(request, kept.standing(request)) for request in kept]
    if as_json:
        typer.echo(
            json.dumps(
                [
                    {"id": one.id, "standing": standing, "digest": one.digest, "coordinator": kept.noted(one)}
                    for one, standing in known
                ],
                indent=2,
            )
        )
        return
    if not known:
        tell("No request came yet.")
        return
    table = Table()
    for column in ("request", "kind", "decided here", "at the coordinator", "where"):
        table.add_column(column)
    for request, standing in known:
        table.add_row(request.id, request.kind, standing, escape(_there(kept.noted(request))), escape(request.where))
    results.print(table)


@requests.command("show")
def show_request(name: RequestName, site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """One request as it came, and what was decided of it."""
    kept = Requests(site_toml.parent)
    request = _request(name, kept, keep=False)
    decision = kept.decision(request)
    told = {"request": json.loads(request.to_json()), "digest": request.digest, "standing": kept.standing(request)}
    told |= {"coordinator": kept.noted(request)}
    if decision:
        told["decision"] = {"by": decision.by, "note": decision.note, "at": decision.at}
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    say(f"{request.to_toml().rstrip()}\ndigest   {request.digest}\nstanding {told['standing']}")
    if decision:
        say(f"decided  {decision.at} by {decision.by}: {decision.note}")
    if noted := kept.noted(request):
        say(f"there     {_there(noted)}, since {noted['since']}")
        if request.id in kept.to_sign(read_site_config(site_toml).name):
            say(f"sign it   excise site sign {request.id}")


def _there(noted: dict[str, Any]) -> str:
    """Where a request stands at the coordinator, and for whom it waits."""
    waits = f", waits for {', '.join(noted['waits_for'])}" if noted and noted["waits_for"] else ""
    return f"{noted['state']}{waits}" if noted else "–"


@site.command()
def approve(name: RequestName, by: DecidedBy, note: Note = "", site_toml: SiteToml = Path("site.toml")) -> None:
    """Allow a request to be carried out here. The decision is signed with the site's key, and logged."""
    _decide(name, Standing.APPROVED, by, note, site_toml)


@site.command()
def deny(name: RequestName, by: DecidedBy, note: Note, site_toml: SiteToml = Path("site.toml")) -> None:
    """Refuse a request. The decision is signed with the site's key, and logged."""
    _decide(name, Standing.DENIED, by, note, site_toml)


@site.command("dry-run")
def dry_run(
    name: RequestName,
    weights: Annotated[
        Path | None, typer.Option("--model-weights", help="The deployed model; without it a new one of the same kind.")
    ] = None,
    model: Annotated[str, typer.Option(help="Its architecture.")] = "allcnn",
    site_toml: SiteToml = Path("site.toml"),
    as_json: AsJson = False,
) -> None:
    """Try a request here, alone: whom it concerns, and exactly what would leave. Nothing leaves."""
    from excise.client.dryrun import dry_run as try_it
    from excise.client.site import open_site
    from excise.common.models import ModelSpec
    from excise.common.weights import load_weights

    opened = open_site(site_toml.absolute())
    data = opened.config.data
    spec = ModelSpec(
        name=model,
        classes=len(data.classes),
        multi_label=data.multi_label,
        channels=data.channels,
        size=data.size,
        dims=data.dims,
    )
    request = _request(name, Requests(site_toml.parent), keep=False)
    found = try_it(opened, request, spec, load_weights(weights) if weights else None, lambda what: tell(f"round: {what}"))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    images = sum(found.matched["split"].values())
    skipped = f" and {found.skipped:,} that are skipped so far" if found.skipped else ""
    say(f"'{request.id}' matches {images:,} images here{skipped}: {request.where}")
    if images:
        print_counts(found.matched)
    for message in found.leaving:
        say(f"\n{message.kind}: {message.size:,} bytes would leave\n{json.dumps(message.fields, indent=2)}")


@site.command()
def forget(
    name: RequestName,
    by: By,
    anyway: Annotated[
        str, typer.Option(metavar="WHY", help="Although no model that forgot them was promoted; the reason is logged.")
    ] = "",
    site_toml: SiteToml = Path("site.toml"),
) -> None:
    """Leave the images of a request out for good, once a model that forgot them was promoted.

    Before that, they would be left out of unlearning too, and stay in the model.
    They are entered in the site's register, under keyed hashes, and purged from its cache. No later scan brings them back.
    """
    from excise.client.forgetting import forget_for_good

    kept = Requests(site_toml.parent)
    request = _request(name, kept)
    if read_site_config(site_toml).policy.approval and kept.standing(request) is not Standing.APPROVED:
        raise ConfigError(f"'{request.id}' is {kept.standing(request)} here; only what was approved is forgotten")
    left = forget_for_good(site_toml.absolute(), request, by, anyway)
    skipped = f" and {left.skipped:,} that were skipped so far" if left.skipped else ""
    tell(f"{left.images:,} images of '{request.id}'{skipped} are left out from now on; {left.new:,} entries are new")
    if left.unknown:
        tell(
            f"{left.unknown:,} of them cannot be decoded: they are known by their names alone. Do this again when they can be"
        )


def _decide(name: str, standing: Standing, by: str, note: str, site_toml: Path) -> None:
    config, kept = read_site_config(site_toml), Requests(site_toml.parent)
    request = _request(name, kept)
    if standing is Standing.APPROVED and request.kind not in config.policy.kinds:
        raise ConfigError(
            f"policy.kinds in {site_toml} does not allow requests of kind '{request.kind}'; add it there first, if it should"
        )
    lacks = request.predicate.lacks(names_of(site_toml.parent)) if standing is Standing.APPROVED else ""
    decision = kept.decide(request, standing, by, note)
    tell(f"'{request.id}' is {standing}: signed at {decision.at}, digest {request.digest[:12]}")
    if config.coordinator is not None:
        _deliver(site_toml, kept, request)
    if lacks:
        tell(f"Warning: {lacks}; before that the rounds of '{request.id}' are refused here")


def _deliver(site_toml: Path, kept: Requests, request: ForgetRequest) -> None:
    """Tell the coordinator at once; when it does not answer, `excise site up` does later."""
    from excise.client.coordinator import CoordinatorRefused, CoordinatorSilent, connected

    signed = kept.signed(request)
    assert signed, "it was decided a moment ago"
    try:
        with connected(site_toml.parent, read_site_config(site_toml).coordinator) as coordinator:
            told = coordinator.decide(request.id, *signed)
    except CoordinatorSilent:
        tell("The coordinator does not answer now; excise site up tells it later")
    except CoordinatorRefused as error:
        tell(f"The coordinator does not take it: {error}")
    else:
        kept.note(request, told.state, told.since, told.waits_for)
        tell(f"The coordinator knows; the request is {told.state}")


def _request(name: str, kept: Requests, keep: bool = True) -> ForgetRequest:
    """The request of this id, or of this file, which is then kept as if it had come; a draft is not to be kept."""
    if name.endswith(".toml") or Path(name).is_file():
        request = ForgetRequest.from_toml(Path(name))
        if keep:
            kept.arrive(request)
        return request
    found = kept.get(name)
    if found is None:
        raise RequestError(
            f"no request '{name}' came; {did_you_mean(name, [one.id for one in kept]) if any(kept) else 'none did yet'}"
        )
    return found


audit = typer.Typer(no_args_is_help=True, help="The site's own log of what was asked and decided.")
site.add_typer(audit, name="audit")


@audit.command("verify")
def verify_audit(site_toml: SiteToml = Path("site.toml")) -> None:
    """Check that no line of the log was altered, removed or moved."""
    log = site_toml.parent / "audit.jsonl"
    if not log.exists():
        raise DataError(f"no log at {log}: nothing was asked or decided yet")
    found = faults(log)
    if found:
        listed = "; ".join(f"line {fault.line}: {fault.reason}" for fault in found)
        raise DataError(f"{log} is not as it was written: {listed}")
    tell(f"{log}: every line is as it was written")
