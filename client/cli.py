"""`excise site`: what a hospital engineer does beside the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from excise.client.config import read_site_config
from excise.client.requests import Requests, Standing
from excise.common.chain import append, faults
from excise.common.errors import ConfigError, DataError, RequestError, did_you_mean
from excise.common.request import ForgetRequest
from excise.common.terminal import progress, tell

site = typer.Typer(no_args_is_help=True, help="A hospital's side: its images, and what may leave of them.")
results = Console()


class Source(StrEnum):
    """Kinds of places that images come from."""

    DICOM = "dicom"
    IMAGE_FOLDER = "image-folder"
    CSV = "csv"
    NPZ = "npz"


TITLES = {"scan": "Looking through the folder", "prepare": "Preparing images"}
SiteToml = Annotated[Path, typer.Option("--site", help="The site's configuration.", envvar="EXCISE_SITE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@site.command()
def init(
    name: Annotated[str, typer.Option(help="Name of the site: letters, digits and hyphens.", prompt="Name of the site")],
    path: Annotated[Path, typer.Option(help="Folder of the images, or the npz file.", prompt="Folder of the images")],
    source: Annotated[Source, typer.Option(help="Kind of the images' source.", prompt="Kind")] = Source.DICOM,
    labels: Annotated[
        str, typer.Option(help="CSV of labels, for dicom and csv.", prompt="CSV of labels, for dicom and csv")
    ] = "",
    classes: Annotated[
        str, typer.Option(help="Classes in the order that all sites share, parted by commas; read from the labels without.")
    ] = "",
    multi_label: Annotated[bool, typer.Option("--multi-label", help="An image has any number of labels.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder of the site, which is made.")] = Path(),
) -> None:
    """Make a site: a commented site.toml, which is yours, and its keys, which never leave. Asks for what is not given."""
    from excise.client.setup import init as make_site

    table = Path(labels).absolute() if labels else None
    named = [one.strip() for one in classes.split(",") if one.strip()] or _classes_of(source, path, table, multi_label)
    make_site(folder, name, source, path.absolute(), table, named, multi_label)
    tell(f"{folder / 'site.toml'} is written: read it, it says what may leave. The keys are in {folder / 'keys'}.")
    tell("Next: excise site scan, then excise site doctor")


def _classes_of(source: Source, path: Path, labels: Path | None, multi_label: bool) -> list[str]:
    """The classes that the site's own labels name, in the order of the alphabet."""
    from excise.client.labels import read_labels
    from excise.client.sources import named_labels

    if source is Source.IMAGE_FOLDER:
        found = {at.name for at in path.iterdir() if at.is_dir()} if path.is_dir() else set()
    elif labels and source in (Source.DICOM, Source.CSV):
        lines = read_labels(labels, "SOPInstanceUID" if source is Source.DICOM else "image")
        found = {name for line in lines.values() for name in named_labels(line["label"], multi_label)}
    else:
        raise ConfigError("name the classes in the order that all sites share: --classes 'no tumour,tumour'")
    tell(f"classes, as your own labels name them: {', '.join(sorted(found))}. Every site needs the same, in the same order.")
    return sorted(found)


@site.command()
def scan(
    site_toml: SiteToml = Path("site.toml"),
    problems: Annotated[bool, typer.Option("--problems", help="List every file that is skipped, with its reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """Index the images, prepare those that are new or changed, and tell what there is. Nothing leaves the site."""
    from excise.client.forgotten import Register
    from excise.client.images import load_images
    from excise.client.sources import index_of
    from excise.client.summary import summarise

    config = read_site_config(site_toml)
    with progress(TITLES) as report:
        if config.data.source == "dicom":
            index_of(config).scan(lambda found, read: report("scan", read, found, ""))
        forgotten = Register(site_toml.parent, config.split.key).holds
        found, _ = load_images(config, lambda done, total: report("prepare", done, total, ""), forgotten)
    summary = summarise(found)
    skipped = [(problem.item, problem.reason) for problem in found.problems]
    if as_json:
        told = {**summary, "problems": [{"item": item, "reason": reason} for item, reason in skipped]} if problems else summary
        typer.echo(json.dumps(told, indent=2))
        return
    _print_summary(summary)
    if problems:
        for item, reason in skipped:
            _say(f"{item}: {reason}")
    elif skipped:
        for reason, count in Counter(reason for _, reason in skipped).most_common(5):
            tell(f"skipped {count}: {reason}")
        tell("Every skipped file and its reason: excise site scan --problems")


def _say(text: str) -> None:
    """A result as it is: neither wrapped nor read as markup."""
    results.print(text, soft_wrap=True, markup=False, highlight=False)


def _print_summary(summary: dict[str, dict[str, int]]) -> None:
    total = summary["total"]
    results.print(
        f"{total['images']:,} images of {total['patients']:,} patients; {total['skipped']:,} skipped", highlight=False
    )
    _print_counts({name: counts for name, counts in summary.items() if name != "total"})


def _print_counts(counts_of: Mapping[str, Mapping[str, int]]) -> None:
    table = Table()
    for column in ("", "", "images"):
        table.add_column(column, justify="right" if column else "left")
    for name, counts in counts_of.items():
        for i, (value, count) in enumerate(counts.items()):
            table.add_row(name if i == 0 else "", escape(value), f"{count:,}", end_section=i == len(counts) - 1)
    results.print(table)


@site.command()
def join(
    invite: Annotated[Path, typer.Argument(metavar="INVITE", help="The file that the coordinator sent.")],
    fingerprint: Annotated[
        str, typer.Option(help="Of the coordinator's authority, told by another way.", prompt="Fingerprint, as told")
    ],
    site_toml: SiteToml = Path("site.toml"),
) -> None:
    """Trust a coordinator: its fingerprint is checked, its authority installed, its address entered in site.toml."""
    from excise.client.joining import join as join_coordinator
    from excise.common.invite import Invite

    sent = Invite.read(invite)
    join_coordinator(site_toml, sent, fingerprint)
    append(Requests(site_toml.parent).log, "joined", address=sent.address, fingerprint=sent.fingerprint)
    tell(f"Joined {sent.address}. Send {site_toml.parent / 'keys' / 'node.pub'} to the coordinator, to be registered.")
    tell("Next: excise site doctor")


@site.command()
def doctor(site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """Check everything that has to be right before the site answers a round; each fault comes with its remedy."""
    from excise.client.deploy.doctor import examine

    findings = []
    for finding in examine(site_toml.absolute()):
        findings.append(finding)
        if not as_json:
            mark = {True: "✓", False: "✗", None: "–"}[finding.good]
            _say(f"{mark} {finding.name}: {finding.told}")
            if not finding.good and finding.remedy:
                _say(f"    → {finding.remedy}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    missing = [finding.name for finding in findings if finding.good is False and finding.required]
    if missing:
        raise ConfigError(f"the site cannot start before this is right: {', '.join(missing)}")


@site.command()
def crosswalk(
    mapping: Annotated[Path, typer.Argument(help="CSV: original,patient. You may delete it afterwards.")],
    site_toml: SiteToml = Path("site.toml"),
) -> None:
    """Let lists of the hospital's own patient numbers find de-identified images. Only keyed hashes of the numbers are kept."""
    from excise.client.crosswalk import Crosswalk, read_pairs

    walk = Crosswalk(site_toml.parent, read_site_config(site_toml).split.key)
    new = walk.add(read_pairs(mapping))
    tell(f"{new:,} new pairs, {len(walk):,} in all")


requests = typer.Typer(no_args_is_help=True, help="Forget requests that came to this site.")
site.add_typer(requests, name="requests")
RequestName = Annotated[str, typer.Argument(metavar="REQUEST", help="Its id, or a file of it (TOML).")]
By = Annotated[str, typer.Option("--by", help="Who decides: a name that can be asked later.", prompt="Your name")]
Note = Annotated[str, typer.Option("--note", help="Why.")]


@requests.command("list")
def list_requests(site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """Every request that came, and what was decided of it."""
    kept = Requests(site_toml.parent)
    known = [(request, kept.standing(request)) for request in kept]
    if as_json:
        typer.echo(
            json.dumps([{"id": one.id, "standing": standing, "digest": one.digest} for one, standing in known], indent=2)
        )
        return
    table = Table()
    for column in ("request", "kind", "standing", "where"):
        table.add_column(column)
    for request, standing in known:
        table.add_row(request.id, request.kind, standing, escape(request.where))
    results.print(table) if known else tell("No request came yet.")


@requests.command("show")
def show_request(name: RequestName, site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """One request as it came, and what was decided of it."""
    kept = Requests(site_toml.parent)
    request = _request(name, kept)
    decision = kept.decision(request)
    told = {"request": json.loads(request.to_json()), "digest": request.digest, "standing": kept.standing(request)}
    if decision:
        told["decision"] = {"by": decision.by, "note": decision.note, "at": decision.at}
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    _say(f"{request.to_toml().rstrip()}\ndigest   {request.digest}\nstanding {told['standing']}")
    if decision:
        _say(f"decided  {decision.at} by {decision.by}: {decision.note}")


@site.command()
def approve(name: RequestName, by: By, note: Note = "", site_toml: SiteToml = Path("site.toml")) -> None:
    """Allow a request to be carried out here. The decision is signed with the site's key, and logged."""
    _decide(name, Standing.APPROVED, by, note, site_toml)


@site.command()
def deny(name: RequestName, by: By, note: Note, site_toml: SiteToml = Path("site.toml")) -> None:
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
    request = _request(name, Requests(site_toml.parent))
    found = try_it(opened, request, spec, load_weights(weights) if weights else None, lambda what: tell(f"round: {what}"))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    images = sum(found.matched["split"].values())
    _say(f"'{request.id}' matches {images:,} images here: {request.where}")
    if images:
        _print_counts(found.matched)
    for message in found.leaving:
        _say(f"\n{message.kind}: {message.size:,} bytes would leave\n{json.dumps(message.fields, indent=2)}")


@site.command()
def forget(name: RequestName, by: By, site_toml: SiteToml = Path("site.toml")) -> None:
    """Leave the images of a request out for good, once a model that forgot them is in use.

    They are entered in the site's register, under keyed hashes, and purged from its cache. No later scan brings them back.
    """
    from excise.client.forgetting import forget_for_good

    kept = Requests(site_toml.parent)
    request = _request(name, kept)
    if read_site_config(site_toml).policy.approval and kept.standing(request) is not Standing.APPROVED:
        raise ConfigError(f"'{request.id}' is {kept.standing(request)} here; only what was approved is forgotten")
    images, new = forget_for_good(site_toml.absolute(), request)
    append(kept.log, "images forgotten", request=request.id, digest=request.digest, images=images, by=by)
    tell(f"{images:,} images of '{request.id}' are left out from now on; {new:,} of them were not so before")


def _decide(name: str, standing: Standing, by: str, note: str, site_toml: Path) -> None:
    config, kept = read_site_config(site_toml), Requests(site_toml.parent)
    request = _request(name, kept)
    if standing is Standing.APPROVED and request.kind not in config.policy.kinds:
        raise ConfigError(
            f"policy.kinds in {site_toml} does not allow requests of kind '{request.kind}'; add it there first, if it should"
        )
    decision = kept.decide(request, standing, by, note)
    tell(f"'{request.id}' is {standing}: signed at {decision.at}, digest {request.digest[:12]}")


def _request(name: str, kept: Requests) -> ForgetRequest:
    """The request of this id, or of this file, which is then kept as if it had come."""
    if name.endswith(".toml") or Path(name).is_file():
        request = ForgetRequest.from_toml(Path(name))
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
