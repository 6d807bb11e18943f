"""The coordinator's own certificate authorities: one vouches for its server, another for sites, neither for anything else.

Sites trust the first by its fingerprint (`common/invite.py`), never by the system's list of authorities; its key need not stay
on the machine. The second signs whenever a site joins. ECDSA on P-384 throughout; X.509 profile of RFC 5280.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.signing import write_secret

AUTHORITY_YEARS, SERVER_DAYS = 10, 397
"""How long each is valid; a server's is made anew by `excise server renew`, without a new invite."""
SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
SKEW = timedelta(hours=1)
"""Certificates begin so long ago: a site's clock may be behind."""


@dataclass(frozen=True)
class Authority:
    """Files of an authority: its certificate, which everybody may have, and its key."""

    certificate: Path
    key: Path

    def make(self, name: str) -> None:
        """Make it anew; people see `name` in its certificate.

        Raises
        ------
        ConfigError : there is one already; it is never overwritten
        StorageError : a file cannot be written
        """
        key = ec.generate_private_key(ec.SECP384R1())
        write_secret(self.key, pem_of(key))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _begun(subject, subject, key.public_key(), timedelta(days=365 * AUTHORITY_YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA384())
        )
        write_atomically(self.certificate, certificate.public_bytes(Encoding.PEM))

    def issue(self, hosts: Sequence[str], certificate: Path, key: Path) -> None:
        """A certificate of a server that answers to `hosts`, names or addresses, and its key; former ones are replaced.

        Raises
        ------
        ConfigError : the authority's files cannot be read, or there is no host
        StorageError : a file cannot be written
        """
        if not hosts:
            raise ConfigError("a server's certificate needs a name or an address that sites reach it by")
        own = ec.generate_private_key(ec.SECP384R1())
        alternative = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
        made = self._certified(hosts[0][:64], own.public_key(), timedelta(days=SERVER_DAYS), SERVER_AUTH, alternative)
        key.unlink(missing_ok=True)
        write_secret(key, pem_of(own))
        write_atomically(certificate, made.public_bytes(Encoding.PEM))

    def vouch(self, role: str, name: str, key: ec.EllipticCurvePublicKey, lasts: timedelta) -> x509.Certificate:
        """A certificate with which a client shows that it is `name`, and in which `role` (its organizational unit) it comes.

        Raises
        ------
        ConfigError : the authority's files cannot be read
        """
        return self._certified(name, key, lasts, CLIENT_AUTH, role=role)

    def _certified(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        lasts: timedelta,
        use: x509.ObjectIdentifier,
        alternative: x509.SubjectAlternativeName | None = None,
        role: str = "",
    ) -> x509.Certificate:
        authority, signing = self._read()
        unit = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role)] if role else []
        subject = x509.Name([*unit, x509.NameAttribute(NameOID.COMMON_NAME, name)])
        begun = (
            _begun(subject, authority.subject, key, lasts)
            .add_extension(_issued_by(authority), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        )
        return (begun.add_extension(alternative, critical=False) if alternative else begun).sign(signing, hashes.SHA384())

    def _read(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            key = load_pem_private_key(self.key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"the authority at {self.certificate.parent} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{self.key} is not the key of {self.certificate}: put both back from one backup")
        return certificate, key


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as it is written into a file that only its owner may read."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lasts: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _issued_by(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
