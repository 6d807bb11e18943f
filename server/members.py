"""Sites of a coordinator: invited, asking to be let in, admitted, revoked.

An invite is a certificate that says so, valid for a week and for one use. Whoever uses it hands in the site's public keys; a
person compares their fingerprint with what the site's engineer tells by telephone, and lets the site in.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select
from sqlalchemy.orm import Session

from excise.common.errors import ConfigError, did_you_mean
from excise.common.evidence import COORDINATOR
from excise.common.identity import SiteKeys
from excise.common.invite import SITE_NAME, Invite, fingerprint_of, plain
from excise.common.signing import is_signed
from excise.server.authority import Authority, pem_of
from excise.server.config import ServerConfig
from excise.server.link import node_key
from excise.server.requests import withdraw
from excise.server.setup import AUTHORITY, sites_authority
from excise.server.store import Store
from excise.server.store.tables import Site, SiteState, now

INVITE_DAYS, SITE_DAYS = 7, 397
"""How long an invite can be used, and how long a site's certificate is valid (`excise site renew`)."""
RELEASE = 64
"""Most characters of a release that are kept."""
INVITE, SITE = "invite", "site"
"""Roles in certificates: an invite may only join, a site may do the rest once it is let in."""


def invite(store: Store, folder: Path, config: ServerConfig, site: str, by: str) -> Invite:
    """Make an invite of one site. An earlier one that nobody used counts no more.

    Raises
    ------
    ConfigError : there is such a site already, that is no name of a site, or the coordinator's files cannot be read
    """
    if not re.fullmatch(SITE_NAME, site):
        raise ConfigError(f"'{site}' is no name of a site: small letters, digits and hyphens, at most 64")
    if site == COORDINATOR:
        raise ConfigError(f"no site is called '{COORDINATOR}': under that name the coordinator signs evidence")
    try:
        authority = (folder / AUTHORITY).read_text()
    except OSError as error:
        raise ConfigError(f"no authority at {folder / AUTHORITY}: {error.strerror}") from error
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = sites_authority(folder).vouch(INVITE, site, key.public_key(), timedelta(days=INVITE_DAYS))
    made = Invite(
        site=site,
        address=config.address,
        api=config.api,
        expires=(datetime.now(UTC) + timedelta(days=INVITE_DAYS)).isoformat(timespec="seconds"),
        authority=authority,
        fingerprint=fingerprint_of(authority),
        certificate=certificate.public_bytes(Encoding.PEM).decode(),
        key=pem_of(key).decode(),
    )
    with store.change() as change:
        known = change.session.get(Site, site, with_for_update=True)
        if known is not None and known.state in (SiteState.ASKING, SiteState.ADMITTED):
            raise ConfigError(f"there is a site '{site}', {known.state}: excise server revoke {site} first, or another name")
        row = known or Site(name=site)
        row.state, row.since, row.invite_serial = SiteState.INVITED, now(), serial_of(certificate)
        row.node_key = row.signing_key = row.fingerprint = row.certificate = ""
        change.session.add(row)
        change.log("site invited", site=site, expires=made.expires, by=by)
    return made


def join(store: Store, authority: Authority, site: str, serial: str, keys: SiteKeys, signature: str) -> str:
    """Take in the keys of whoever used an invite, once, and certify the one for the API. Let in it is later.

    Parameters
    ----------
    serial : of the invite's certificate
    signature : of `keys.signed()`, with the signing key

    Returns
    -------
    The certificate, PEM; the same again for the same keys, when the first answer was lost

    Raises
    ------
    ConfigError : the invite was used with other keys or replaced, or the keys cannot be used; says which
    """
    public = _certifiable(keys.request)
    if not is_signed(keys.signed(), signature, keys.signing):
        raise ConfigError("the site's keys are not signed with its signing key")
    node = node_key(keys.node.encode()).decode()
    with store.change() as change:
        row = change.session.get(Site, site, with_for_update=True)
        if row is None or row.invite_serial != serial or row.state == SiteState.REVOKED:
            raise ConfigError(f"this invite of '{site}' counts no more: ask the coordinator for a new one")
        if row.state != SiteState.INVITED:
            if row.fingerprint == keys.fingerprint:
                return row.certificate
            raise ConfigError(
                f"this invite of '{site}' was used already, with other keys. If it was not you, tell the coordinator at once"
            )
        taken = change.session.scalars(
            select(Site.name).where((Site.node_key == node) | (Site.signing_key == keys.signing), Site.name != site)
        ).first()
        if taken:
            raise ConfigError("one of the keys is another site's: each site has its own")
        certificate = authority.vouch(SITE, site, public, timedelta(days=SITE_DAYS)).public_bytes(Encoding.PEM).decode()
        row.state, row.since, row.node_key, row.signing_key = SiteState.ASKING, now(), node, keys.signing
        row.fingerprint, row.certificate = keys.fingerprint, certificate
        change.log("site asks to be let in", site=site, fingerprint=keys.fingerprint)
    return certificate


def renew(store: Store, authority: Authority, site: str, request: str) -> str:
    """A new certificate of a site that is let in, for the key in a signing request.

    The former stays good till it expires: the answer may be lost on its way.

    Raises
    ------
    ConfigError : the request cannot be used
    """
    public = _certifiable(request)
    with store.change() as change:
        _found(change.session, site)
        certificate = authority.vouch(SITE, site, public, timedelta(days=SITE_DAYS)).public_bytes(Encoding.PEM).decode()
        change.log("site has a new certificate", site=site)
    return certificate


def admit(store: Store, site: str, fingerprint: str, by: str) -> None:
    """Let a site in, when the fingerprint that its engineer told by telephone is that of the keys which came.

    Raises
    ------
    ConfigError : it did not ask, or the fingerprint differs
    """
    with store.change() as change:
        row = _joined(change.session, site)
        if plain(fingerprint) != row.fingerprint:
            raise ConfigError(
                "the fingerprint that you were told is not that of the keys which came: do not let this site in. Somebody may "
                f"have used its invite: excise server revoke {site}, and invite it again"
            )
        if row.state == SiteState.ASKING:
            row.state, row.since = SiteState.ADMITTED, now()
            change.log("site admitted", site=site, fingerprint=row.fingerprint, by=by)


def check_asks(store: Store, site: str) -> None:
    """Let a site pass that joined by its invite.

    Raises
    ------
    ConfigError : it did not, or there is none of this name
    """
    with store.reading() as session:
        _joined(session, site)


def revoke(store: Store, site: str, by: str, why: str = "") -> None:
    """Let a site in no more; its invite and its certificate are worth nothing from now on.

    What it approved, and what has not run, waits for it anew: its keys may be another's.

    Raises
    ------
    ConfigError : there is none of this name
    """
    with store.change() as change:
        row = _found(change.session, site)
        if row.state != SiteState.REVOKED:
            row.state, row.since = SiteState.REVOKED, now()
            withdrawn = withdraw(change, site, by)
            change.log("site revoked", site=site, by=by, why=why, withdrawn=withdrawn)


def told(store: Store, site: str, version: int | None, release: str) -> None:
    """Keep which model a site says it runs, and which release of excise.

    Raises
    ------
    ConfigError : there is no such site
    """
    with store.change() as change:
        row = _found(change.session, site)
        if (row.version, row.release) != (version, release[:RELEASE]):
            change.log("site runs", site=site, model=version, release=release[:RELEASE])
        row.version, row.release, row.told_at = version, release[:RELEASE], now()


def members(store: Store) -> list[Site]:
    """Every site, by name, revoked ones too."""
    with store.reading() as session:
        return list(session.scalars(select(Site).order_by(Site.name)))


def admitted(store: Store) -> dict[str, bytes]:
    """Node keys (PEM) of the sites that are let in, by name."""
    return {site.name: site.node_key.encode() for site in members(store) if site.state == SiteState.ADMITTED}


def signing_keys(store: Store) -> dict[str, str]:
    """Public signing keys (64 hexadecimal digits) of the sites that are let in, by name: those that a person compared."""
    return {site.name: site.signing_key for site in members(store) if site.state == SiteState.ADMITTED}


def serial_of(certificate: x509.Certificate) -> str:
    """Serial number of a certificate, hexadecimal."""
    return f"{certificate.serial_number:x}"


def _joined(session: Session, site: str) -> Site:
    row = _found(session, site)
    if row.state not in (SiteState.ASKING, SiteState.ADMITTED):
        raise ConfigError(f"'{site}' is {row.state}: it has to join by its invite first")
    return row


def _found(session: Session, site: str) -> Site:
    row = session.get(Site, site, with_for_update=True)
    if row is None:
        known = list(session.scalars(select(Site.name)))
        raise ConfigError(f"no site '{site}'; {did_you_mean(site, known) if known else 'none was invited yet'}")
    return row


def _certifiable(request: str) -> ec.EllipticCurvePublicKey:
    """The key that a signing request asks a certificate for, when whoever asks holds it."""
    try:
        asked = x509.load_pem_x509_csr(request.encode())
        key, signed = asked.public_key(), asked.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise ConfigError(f"the signing request cannot be used: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not signed:
        raise ConfigError("the signing request cannot be used: it is not signed with an ECDSA key of its own")
    return key
