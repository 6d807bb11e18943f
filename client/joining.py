"""Joining a coordinator: its fingerprint is checked, its authority installed, and the site's keys are handed in, once."""

from __future__ import annotations

import tomllib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from excise.client.config import read_site_config
from excise.client.coordinator import IDENTITY, connected, secured
from excise.client.setup import NODE_KEY, SIGNING_KEY
from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.identity import SiteKeys
from excise.common.invite import Invite, plain
from excise.common.signing import public_hex, read_key, sign, write_secret

AUTHORITY = "keys/coordinator.crt"


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
    CoordinatorRefused : the invite was used already, or replaced
    StorageError : a file cannot be written
    """
    config, folder = read_site_config(site_toml), site_toml.parent
    if plain(fingerprint) != plain(invite.fingerprint):
        raise ConfigError(
            f"the fingerprint that you were told is not the invite's ({invite.fingerprint}): do not join. Somebody may have "
            "put another invite in its place; ask the coordinator again"
        )
    if invite.site != config.name:
        raise ConfigError(f"the invite is for the site '{invite.site}', this is '{config.name}': ask for one of its own")
    if config.coordinator is not None:
        raise ConfigError(f"the site has joined {config.coordinator.address} already; to join another remove [coordinator]")
    keys = keys_of(folder, config.name)
    signature = sign(read_key(folder / "keys" / SIGNING_KEY), keys.signed())
    with secured(invite.api, invite.authority.encode(), f"{invite.key}{invite.certificate}".encode()) as coordinator:
        certificate, coordinator_key = coordinator.join(keys, signature)
    entry = {"address": invite.address, "api": invite.api, "ca": AUTHORITY, "key": coordinator_key}
    lines = "".join(f'{name} = "{value}"\n' for name, value in entry.items())
    joined = f"{site_toml.read_text(encoding='utf-8-sig').rstrip()}\n\n[coordinator]\n{lines}"
    tomllib.loads(joined)  # before anything is written: a table must not stand there twice
    write_atomically(folder / AUTHORITY, invite.authority)
    key = (folder / IDENTITY).read_text().partition("-----BEGIN CERTIFICATE-----")[0]
    write_atomically(folder / IDENTITY, key + certificate)
    write_atomically(site_toml, joined)
    read_site_config(site_toml)
    return keys.fingerprint


def renew(site_toml: Path) -> None:
    """A new key and a new certificate from the coordinator.

    Raises
    ------
    ConfigError : the site has joined none, or it does not answer; the former certificate stays
    CoordinatorRefused : the site is let in no more
    StorageError : a file cannot be written
    """
    config, folder = read_site_config(site_toml), site_toml.parent
    key = ec.generate_private_key(ec.SECP384R1())
    with connected(folder, config.coordinator) as coordinator:
        certificate = coordinator.renew(_request(key, config.name))
    write_atomically(folder / IDENTITY, _pem(key) + certificate.encode())


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
