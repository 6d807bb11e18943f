"""The public keys of a site, and the one fingerprint that stands for all of them when it is told by telephone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


@dataclass(frozen=True)
class SiteKeys:
    """What a site is known by.

    Attributes
    ----------
    node : of its SuperNode, as in ``keys/node.pub`` (OpenSSH, ECDSA)
    signing : Ed25519, 64 hexadecimal digits
    request : what it asks the coordinator to certify for the API, a certificate signing request (PEM, RFC 2986)
    """

    node: str
    signing: str
    request: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the three public keys, 64 hexadecimal digits.

        Raises
        ------
        ValueError : `request` is no signing request
        """
        api = x509.load_pem_x509_csr(self.request.encode()).public_key()
        node = " ".join(self.node.split()[:2])  # the comment of a key is no part of it
        sha = hashlib.sha256()
        for part in (node.encode(), self.signing.encode(), api.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)):
            sha.update(len(part).to_bytes(4, "big") + part)
        return sha.hexdigest()

    def signed(self) -> bytes:
        """What the site signs to show that the signing key is its own."""
        return f"excise: a site joins with the keys {self.fingerprint}".encode()
