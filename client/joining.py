"""Joining a coordinator: its fingerprint is checked, its authority installed, and the site's keys are handed in, once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from excise.client.config import CoordinatorSettings, SiteConfig, read_site_config
from excise.client.coordinator import IDENTITY, connected, secured
from excise.client.setup import NODE_KEY, SIGNING_KEY
from excise.common.errors import ConfigError, MessageError
from excise.common.files import write_atomically
from excise.common.identity import SiteKeys
from excise.common.invite import Invite, plain
from excise.common.signing import public_hex, read_key, sign, write_secret

AUTHORITY = "keys/coordinator.crt"
REMEDY = "Ask the coordinator by telephone"


def join(site_toml: Path, invite: Invite, fingerprint: str) -> str:
    """Let the site trust the coordinator of `invite`, when `fingerprint` was told by another way, and ask to be let in.

    When it is stopped half way it is done again, with the same invite.

    Returns
    -------
    The fingerprint of the site's own keys, which its engineer tells the coordinator by another way

    Raises
    ------
    ConfigError : the fingerprint differs, the invite is for another site, the site has joined already or lacks a key, or the
        coordinator does not answer; site.toml is as it was
    MessageError : what the coordinator answered is not its key and a certificate of this site; nothing was written
    CoordinatorRefused : the invite was used already, or replaced
    StorageError : a file cannot be written
    """
    config, folder = read_site_config(site_toml), site_toml.parent
    if plain(fingerprint) != plain(invite.fingerprint):
        raise ConfigError(
            "the fingerprint that you were told is not the invite's: do not join. Somebody may have put another invite in its "
            "place; ask the coordinator again"
        )
    if invite.site != config.name:
        raise ConfigError(f"the invite is for the site '{invite.site}', this is '{config.name}': ask for one of its own")
    if config.coordinator is not None:
        raise ConfigError(f"the site has joined {config.coordinator.address} already; to join another remove [coordinator]")
    keys = keys_of(folder, config.name)
    signature = sign(read_key(folder / "keys" / SIGNING_KEY), keys.signed())
    with secured(invite.api, invite.authority.encode(), f"{invite.key}{invite.certificate}".encode()) as coordinator:
        certificate, coordinator_key = coordinator.join(keys, signature)
    joined = _joined(site_toml, invite, coordinator_key)
    identity = _identity((folder / IDENTITY).read_text(), certificate, config.name)
    write_atomically(folder / AUTHORITY, invite.authority)
    write_atomically(folder / IDENTITY, identity)
    write_atomically(site_toml, joined)
    return keys.fingerprint


def _joined(site_toml: Path, invite: Invite, key: str) -> str:
    """site.toml with the coordinator in it. `key` came by the wire, so everything is checked before anything is written."""
    try:
        settings = CoordinatorSettings(address=invite.address, api=invite.api, ca=Path(AUTHORITY), key=key)
    except ValidationError:
        raise MessageError(
            f"the coordinator's signing key is not 64 hexadecimal digits: nothing was written. {REMEDY}"
        ) from None
    before = site_toml.read_text(encoding="utf-8-sig").rstrip()
    joined = f"{before}\n\n{tomli_w.dumps({'coordinator': settings.model_dump(mode='json')})}"
    try:
        SiteConfig.model_validate(tomllib.loads(joined))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"[coordinator] cannot be added at the end of {site_toml}, which is as it was: {error}") from None
    return joined


def _identity(held: str, certificate: str, name: str) -> str:
    """The private key in `held`, and the certificate that came, when it is one certificate, for this key and this name.

    Raises
    ------
    MessageError : it is another one
    """
    key = held.partition("-----BEGIN CERTIFICATE-----")[0]
    try:
        (one,) = x509.load_pem_x509_certificates(certificate.encode())
        names = [str(part.value) for part in one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        ours = one.public_key() == load_pem_private_key(key.encode(), password=None).public_key() and names == [name]
    except (ValueError, UnsupportedAlgorithm):
        raise MessageError(f"what the coordinator sent is not one certificate: nothing was written. {REMEDY}") from None
    if not ours:
        raise MessageError(f"the certificate that came is not for the key and the name of '{name}': nothing written. {REMEDY}")
    return key + one.public_bytes(Encoding.PEM).decode()


def renew(site_toml: Path) -> None:
    """A new key and a new certificate from the coordinator.

    Raises
    ------
    ConfigError : the site has joined none, or it does not answer; the former certificate stays
    MessageError : what came is not a certificate of this site; the former one stays
    CoordinatorRefused : the site is let in no more
    StorageError : a file cannot be written
    """
    config, folder = read_site_config(site_toml), site_toml.parent
    key = ec.generate_private_key(ec.SECP384R1())
    with connected(folder, config.coordinator) as coordinator:
        certificate = coordinator.renew(_request(key, config.name))
    write_atomically(folder / IDENTITY, _identity(_pem(key).decode(), certificate, config.name))


def keys_of(folder: Path, name: str) -> SiteKeys:
    """The public keys of the site in `folder`. The one for the coordinator's service is made when there is none.

    Raises
    ------
    ConfigError : a key of the site is missing
    """
    node, signing = folder / "keys" / f"{NODE_KEY}.pub", read_key(folder / "keys" / SIGNING_KEY)
    if not node.exists():
        raise ConfigError(f"no node key at {node}: excise site init makes it")
    if not (folder / IDENTITY).exists():
        write_secret(folder / IDENTITY, _pem(ec.generate_private_key(ec.SECP384R1())))
    key = load_pem_private_key((folder / IDENTITY).read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "we made it"
    return SiteKeys(node.read_text().strip(), public_hex(signing), _request(key, name))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    return made.public_bytes(Encoding.PEM).decode()
