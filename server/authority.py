"""The coordinator's own certificate authority: it vouches for the server, and for nothing else.

Sites trust it by its fingerprint (`common/invite.py`), never by the system's list of authorities. ECDSA on P-384 throughout;
X.509 profile of RFC 5280.
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
SKEW = timedelta(hours=1)
"""Certificates begin so long ago: a site's clock may be behind."""


@dataclass(frozen=True)
class Authority:
    """Files of an authority: its certificate, which everybody may have, and its key."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        """A new authority in `folder`.

        Raises
        ------
        ConfigError : there is one already; it is never overwritten
        StorageError : a file cannot be written
        """
        made = cls(folder / "authority.crt", folder / "authority.key")
        key = ec.generate_private_key(ec.SECP384R1())
        write_secret(made.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name}: authority of excise")])
        certificate = (
            _begun(subject, subject, key, timedelta(days=365 * AUTHORITY_YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA384())
        )
        write_atomically(made.certificate, certificate.public_bytes(Encoding.PEM))
        return made

    def issue(self, hosts: Sequence[str], certificate: Path, key: Path) -> None:
        """A certificate of a server that answers to `hosts`, names or addresses, and its key; former ones are replaced.

        Raises
        ------
        ConfigError : the authority's files cannot be read, or there is no host
        StorageError : a file cannot be written
        """
        if not hosts:
            raise ConfigError("a server's certificate needs a name or an address that sites reach it by")
        authority, signing = self._read()
        own = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        made = (
            _begun(subject, authority.subject, own, timedelta(days=SERVER_DAYS))
            .add_extension(_issued_by(authority), critical=False)
            .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(signing, hashes.SHA384())
        )
        key.unlink(missing_ok=True)
        write_secret(key, own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        write_atomically(certificate, made.public_bytes(Encoding.PEM))

    def _read(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            key = load_pem_private_key(self.key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"the authority at {self.certificate.parent} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{self.key} is not the key of {self.certificate}: put both back from one backup")
        return certificate, key


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
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
