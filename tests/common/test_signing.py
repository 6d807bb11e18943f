"""Keys and signatures: only the owner reads the key, and no other content or key passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from excise.common.errors import ConfigError
from excise.common.signing import is_signed, make_key, public_hex, read_key, sign


def test_a_key_is_the_owners_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.pem"
    key = make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_hex(read_key(path)) == public_hex(key)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        make_key(path)
    assert path.read_bytes() == before


def test_only_what_was_signed_by_whom_it_says_passes(tmp_path: Path) -> None:
    key, other = make_key(tmp_path / "a"), make_key(tmp_path / "b")
    signature = sign(key, b"content")
    assert is_signed(b"content", signature, public_hex(key))
    assert not is_signed(b"Content", signature, public_hex(key))
    assert not is_signed(b"content", signature, public_hex(other))
    for broken in ("", "00", "no hex", signature[:-2]):
        assert not is_signed(b"content", broken, public_hex(key))
        assert not is_signed(b"content", signature, broken)


def test_a_key_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make it with excise site init"):
        read_key(tmp_path / "none")
    (tmp_path / "text").write_text("no key")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(tmp_path / "text")
    curve = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "curve").write_bytes(curve)
    with pytest.raises(ConfigError, match="no Ed25519 key"):
        read_key(tmp_path / "curve")
