"""What a coordinator hands to a hospital so that its site can join, once: a small file.

    site = "st-mary"
    address = "fleet.example.org:8443"
    api = "fleet.example.org:8444"
    expires = "2026-12-03T10:00:00+00:00"
    fingerprint = "sha256 of the authority's certificate"
    authority = '''-----BEGIN CERTIFICATE-----…'''
    certificate, key = with which the site may ask, once, to be let in

The fingerprint is also told by another way, a telephone say: whoever swaps the file on its way cannot swap that. Who steals
the file can only ask in the site's place, and is found out when a person compares the keys' fingerprint before letting it in.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Self

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from pydantic import Field, ValidationError, model_validator

from excise.common.errors import ConfigError
from excise.common.settings import Settings
from excise.common.validation import explain

SITE_NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"
ADDRESS = r"^[A-Za-z0-9._-]+:[0-9]{1,5}$"
"""Host and port."""


class Invite(Settings):
    """An invitation of one site."""

    site: str = Field(pattern=SITE_NAME)
    """The name that the coordinator expects."""
    address: str = Field(pattern=ADDRESS)
    """Where Flower's rounds are."""
    api: str = Field(pattern=ADDRESS)
    """Where the coordinator's own service is."""
    expires: str
    """When it can no longer be used, ISO 8601."""
    authority: str
    """Certificate of the authority that vouches for the coordinator's server, PEM."""
    fingerprint: str
    """SHA-256 of that certificate."""
    certificate: str
    """Of the invite itself, PEM."""
    key: str
    """Its private key, PEM: worth nothing after it was used once, or expired."""

    @model_validator(mode="after")
    def _is_of_this_authority(self) -> Self:
        if fingerprint_of(self.authority) != plain(self.fingerprint):
            raise ValueError("the fingerprint is not that of the authority in it: the invite was changed on its way")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an invite.

        Raises
        ------
        ConfigError : it cannot be read, is no invite, or was changed
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"no invite at {path}: {error}") from error
        except ValidationError as error:
            raise ConfigError(f"{explain(error, cls, str(path))}\nAsk the coordinator for a new invite.") from error

    def to_toml(self) -> str:
        """The file's text."""
        return tomli_w.dumps(self.model_dump(), multiline_strings=True)


def fingerprint_of(pem: str) -> str:
    """SHA-256 of a certificate, 64 hexadecimal digits.

    Raises
    ------
    ValueError : it is not exactly one certificate
    """
    certificates = x509.load_pem_x509_certificates(pem.encode())
    if len(certificates) != 1:  # a second one would be trusted too, and no fingerprint would tell of it
        raise ValueError(f"expected one certificate, got {len(certificates)}")
    return certificates[0].fingerprint(hashes.SHA256()).hex()


def plain(fingerprint: str) -> str:
    """A fingerprint without the colons, blanks and capitals that people write it with.

    >>> plain("SHA256: AB:cd 01")
    'abcd01'
    """
    return fingerprint.lower().removeprefix("sha256").translate(str.maketrans("", "", ": \t\n"))
