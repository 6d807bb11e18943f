"""Joining a coordinator, and answering its rounds."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from excise.client.cli.shared import AsJson, SiteToml, say, site
from excise.client.config import read_site_config
from excise.client.requests import ROLLED_BACK, Requests
from excise.common.chain import append
from excise.common.decision import Standing
from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.terminal import tell

REMAINS = "Those images are in that model and cannot be unlearned any more: excise site fetch --use, or ask the coordinator"
"""What there is to do about images that were left out before a model that has them came back into use."""


@site.command()
def join(
    invite: Annotated[Path, typer.Argument(metavar="INVITE", help="The file that the coordinator sent.")],
    fingerprint: Annotated[
        str, typer.Option(help="Of the coordinator's authority, told by another way.", prompt="Fingerprint, as told")
    ],
    site_toml: SiteToml = Path("site.toml"),
) -> None:
    """Trust a coordinator, and ask it to let this site in: by its invite, once, when its fingerprint is right."""
    from excise.client.joining import join as join_coordinator
    from excise.common.invite import Invite

    sent = Invite.read(invite)
    own = join_coordinator(site_toml, sent, fingerprint)
    append(Requests(site_toml.parent).log, "joined", address=sent.address, fingerprint=sent.fingerprint, own=own)
    tell(f"Joined {sent.address}; the site is let in once the coordinator has compared its fingerprint.")
    tell(f"Tell them by telephone: {own}")
    tell("Next: excise site doctor")


@site.command()
def renew(site_toml: SiteToml = Path("site.toml")) -> None:
    """A new key and certificate for the coordinator's service, once a year; excise site doctor says when."""
    from excise.client.joining import renew as ask

    ask(site_toml)
    append(Requests(site_toml.parent).log, "certificate renewed")
    tell("The site has a new certificate")


@site.command()
def doctor(site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """Check everything that has to be right before the site answers a round; each fault comes with its remedy."""
    from excise.client.deploy.doctor import examine

    findings = []
    for finding in examine(site_toml.absolute()):
        findings.append(finding)
        if not as_json:
            mark = {True: "✓", False: "✗", None: "–"}[finding.good]
            say(f"{mark} {finding.name}: {finding.told}")
            if not finding.good and finding.remedy:
                say(f"    → {finding.remedy}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    missing = [finding.name for finding in findings if finding.good is False and finding.required]
    if missing:
        raise ConfigError(f"the site cannot start before this is right: {', '.join(missing)}")


@site.command()
def up(site_toml: SiteToml = Path("site.toml")) -> None:
    """Answer the coordinator's rounds until stopped; what dies or hangs is started again. Refused while a check fails."""
    from excise.client.deploy.doctor import examine
    from excise.client.deploy.supervisor import supervisor_of

    at = site_toml.absolute()
    missing = [f"{one.name}: {one.told}" for one in examine(at) if one.good is False and one.required]
    if missing:
        raise ConfigError(f"the site cannot start, excise site doctor tells the remedies: {'; '.join(missing)}")
    supervisor_of(at, read_site_config(at), tell).run()


@site.command()
def pause(
    site_toml: SiteToml = Path("site.toml"),
    off: Annotated[bool, typer.Option("--off", help="Go on.")] = False,
) -> None:
    """Answer no round until told to go on; the site stays up."""
    from excise.client.deploy.supervisor import PAUSED

    paused = site_toml.parent / PAUSED
    if off:
        paused.unlink(missing_ok=True)
    else:
        write_atomically(paused, "")
    tell("The site answers rounds again." if off else "No round is answered from now on; go on with excise site pause --off")


@site.command()
def status(site_toml: SiteToml = Path("site.toml"), as_json: AsJson = False) -> None:
    """Whether the site is up, what waits for its people, what left it in updates, and what went wrong last."""
    from excise.client.accountant import Accountant
    from excise.client.deploy.supervisor import node_status
    from excise.client.incidents import last_incident
    from excise.client.promoted import has_forgotten, in_use
    from excise.client.refusals import last_refusals

    config, kept = read_site_config(site_toml), Requests(site_toml.parent)
    told, privacy, refused = node_status(config), config.policy.privacy, last_refusals(config)
    spent = Accountant(site_toml.parent).spent(privacy.delta)
    running, paused = told or (None, False)
    waiting = [request.id for request in kept if kept.standing(request) is Standing.PENDING]
    to_sign, incident, unlearned = kept.to_sign(config.name), last_incident(config), has_forgotten(site_toml.parent)
    forgotten = kept.forgotten()
    still_known = [one.id for one in forgotten if unlearned is not None and one.id not in unlearned]
    rolled_back = [one.id for one in forgotten if kept.noted(one).get("state") == ROLLED_BACK and one.id not in still_known]
    if as_json:
        node = asdict(running) | {"paused": paused} if running else None
        updates, refusals = asdict(spent) | {"max_epsilon": privacy.max_epsilon}, [asdict(one) for one in refused]
        last = asdict(incident) | {"remedy": incident.remedy} if incident else None
        shown = {"node": node, "waiting": waiting, "to_sign": to_sign, "updates": updates, "refused": refusals}
        left = {"incident": last, "forgotten_but_known": sorted({*still_known, *rolled_back})}
        typer.echo(json.dumps(shown | left, indent=2))
        return
    if running is None:
        say("The site was never up: excise site up")
    elif running.running:
        since = datetime.fromtimestamp(running.since).astimezone()
        say(f"Up since {since:%Y-%m-%d %H:%M:%S}, started again {running.restarts} times")
    else:
        say("Paused: excise site pause --off" if paused else f"Down: {running.reason or 'stopped'}")
    if running and running.reason and running.running:
        say(f"Last started again because {running.reason}")
    say(f"Requests that wait for a decision: {', '.join(waiting) or 'none'}")
    for name in to_sign:
        say(f"Evidence to sign: {name}: excise site sign {name}")
    noisy, bound = spent.updates - spent.bare, f", of {privacy.max_epsilon:g} allowed" if privacy.max_epsilon else ""
    told_of = f": ε = {spent.epsilon:.4g} at δ = {spent.delta:g}{bound}" if noisy or bound else ""
    say(f"Updates that left: {spent.bare:,} without noise, {noisy:,} with{told_of}")
    if model := in_use(site_toml.parent):
        say(f"Model in use: {model}")
    if still_known:
        say(f"Left out here for good, but model {model} has not forgotten: {', '.join(still_known)}. {REMAINS}")
    if rolled_back:
        say(f"Left out here for good, but rolled back at the coordinator: {', '.join(rolled_back)}. {REMAINS}")
    if incident:
        say(f"Last round that was not answered: {_local(incident.at)} {incident.round}: {incident.code}")
        say(f"    → {incident.remedy}; incident {incident.number} in the log of rounds")
    if refused:
        say(f"The coordinator did not use {'an answer' if len(refused) == 1 else f'{len(refused)} answers'} of this site:")
    for one in refused:
        say(f"  {_local(one.at)} {one.round}: {one.code}")


def _local(at: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M:%S}"
