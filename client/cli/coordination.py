"""What a site says to its coordinator beside rounds: a request of its own, its signature of evidence, which model it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from excise.client.cli.shared import AsJson, SiteToml, say, site
from excise.client.config import CoordinatorSettings, read_site_config
from excise.client.requests import Requests
from excise.common.chain import append
from excise.common.errors import ConfigError, DataError
from excise.common.request import ForgetRequest
from excise.common.terminal import progress, tell

Request = Annotated[str, typer.Argument(metavar="REQUEST", help="Its id.")]
By = Annotated[str, typer.Option("--by", help="Who decides: a name that can be asked later.", prompt="Your name")]


@site.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The request (TOML).")],
    by: By,
    names_patients: Annotated[
        bool, typer.Option("--names-patients", help="Send it although it names patients, which every site then reads.")
    ] = False,
    site_toml: SiteToml = Path("site.toml"),
) -> None:
    """Send a forget request of this site to the coordinator: every site that is let in is asked, this one too.

    All of its text, the reason too, is read there and by every site, and stands in the evidence.
    """
    from excise.client.coordinator import connected
    from excise.common.naming import names, refuse_names

    request, kept = ForgetRequest.from_toml(file), Requests(site_toml.parent)
    if not names_patients:
        refuse_names(request.predicate, "--names-patients")
    kept.check_id(request)
    with connected(site_toml.parent, _joined(site_toml)) as coordinator:
        told = coordinator.submit(request)  # before it is kept and logged: what was not sent must not be told as submitted
    kept.arrive(request)
    append(kept.log, "request submitted", request=request.id, digest=request.digest, by=by, names=names(request.predicate))
    kept.note(request, told.state, told.since, told.waits_for)
    tell(f"'{request.id}' is {told.state}; it waits for {', '.join(told.waits_for)}")


@site.command()
def sign(
    request: Request,
    by: By,
    to: Annotated[Path | None, typer.Option(help="Keep the document that is signed in this file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what was found, and sign nothing.")] = False,
    site_toml: SiteToml = Path("site.toml"),
) -> None:
    """Sign the evidence of a request, when what it says of this site is what this site knows."""
    from excise.client.coordinator import connected
    from excise.client.evidence import check, read
    from excise.common.canonical import canonical, digest_of
    from excise.common.files import write_atomically
    from excise.common.signing import read_key
    from excise.common.signing import sign as signature_of

    settings, kept = _joined(site_toml), Requests(site_toml.parent)
    with connected(site_toml.parent, settings) as coordinator:
        document = read(coordinator.evidence(request), request)
        text = canonical(document)
        found = check(document, read_site_config(site_toml).name, kept, settings.key)
        for finding in found:
            say(f"{'✓' if finding.good else '✗'} {finding.told}")
        impact = document["impact_assessment"] if all(finding.good for finding in found) else None
        if impact is None:
            raise DataError("the evidence does not say what this site knows: nothing was signed. Ask the coordinator")
        say(f"the acceptance rule is {'met' if impact['accepted'] else 'NOT met'}; digest {digest_of(text)}")
        if to:
            write_atomically(to, text)
        if dry_run:
            return
        append(kept.log, "evidence signed", request=request, digest=digest_of(text), by=by)
        key = read_key(kept.key)
        coordinator.sign_evidence(request, digest_of(text), signature_of(key, text.encode()))
    for one in document["description_of_modification"]["requests"]:
        kept.signed_evidence(ForgetRequest.from_json(json.dumps(one["request"])), read_site_config(site_toml).name)
    tell(f"The evidence of '{request}' is signed")


@site.command()
def fetch(
    version: Annotated[
        int | None, typer.Option(help="Which model; the one in use without, unless this site runs a later one.")
    ] = None,
    use: Annotated[bool, typer.Option("--use", help="Tell the coordinator that this site runs it from now on.")] = False,
    site_toml: SiteToml = Path("site.toml"),
    as_json: AsJson = False,
) -> None:
    """Fetch a promoted model: its signature and digest are checked; what was broken off goes on where it was."""
    from excise.client.coordinator import connected
    from excise.client.promoted import fetch as get
    from excise.client.promoted import use as run_it

    settings, folder = _joined(site_toml), site_toml.parent
    with connected(folder, settings) as coordinator:
        with progress({"fetch": "Fetching the model"}) as report:
            model, path = get(folder, coordinator, settings.key, version, lambda done, total: report("fetch", done, total, ""))
        if use:
            append(Requests(folder).log, "model in use", version=model.version, digest=model.manifest["digest"])
            run_it(folder, coordinator, model)
    if as_json:
        typer.echo(json.dumps({"path": str(path), "manifest": model.manifest}, indent=2))
        return
    forgotten = ", ".join(model.manifest["requests"]) or "nothing"
    say(f"{path}\nmodel {model.version}, digest {model.manifest['digest'][:16]}…; it has forgotten: {forgotten}")
    if not use:
        say("Once it is deployed: excise site fetch --use")


def _joined(site_toml: Path) -> CoordinatorSettings:
    settings = read_site_config(site_toml).coordinator
    if settings is None:
        raise ConfigError("the site has joined no coordinator yet: excise site join INVITE")
    return settings
