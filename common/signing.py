"""Ed25519 keys: what a site or the coordinator signs with, and how others check it (RFC 8032)."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from excise.common.errors import ConfigError
from excise.common.files import storage_errors


def make_key(path: Path) -> Ed25519PrivateKey:
    """A new private key in `path`, readable by its owner alone.

    Raises
    ------
    ConfigError : there is a key already; it is never overwritten
    StorageError : it cannot be written
    """
    key = Ed25519PrivateKey.generate()
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, mode 0600, and that did not exist.

    Raises
    ------
    ConfigError : it exists; a secret is never overwritten
    StorageError : it cannot be written
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(f"{path} exists already and is not overwritten; move it away to make another") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def read_key(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`.

    Raises
    ------
    ConfigError : there is none, or it is of another kind; says how to make one
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise ConfigError(f"no signing key at {path}: make it with excise site init") from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"the signing key at {path} cannot be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"the key at {path} is no Ed25519 key")
    return key


def public_hex(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public key, 64 hexadecimal digits."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def sign(key: Ed25519PrivateKey, content: bytes) -> str:
    """The signature of `content`, 128 hexadecimal digits."""
    return key.sign(content).hex()


def is_signed(content: bytes, signature: str, public: str) -> bool:
    """Whether the owner of the key `public` (hexadecimal) signed `content`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), content)
    except (ValueError, InvalidSignature):
        return False
    return True
