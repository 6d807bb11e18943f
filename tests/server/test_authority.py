"""The coordinator's authority: what it vouches for is believed by those who know it, and by nobody else."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from excise.common.errors import ConfigError
from excise.common.invite import fingerprint_of
from excise.server.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return made_in(tmp_path / "keys")


def made_in(folder: Path, name: str = "tests") -> Authority:
    authority = Authority(folder / "authority.crt", folder / "authority.key")
    authority.make(name)
    return authority


def greet(trusted: Path, folder: Path, host: str) -> str:
    """Shake hands with a server of the certificate in `folder`; its subject, as the client sees it."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.crt", folder / "server.key")
    asking = ssl.create_default_context(cafile=str(trusted))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            serving.wrap_socket(theirs, server_side=True).close()
        except OSError:  # the client did not believe it
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(ours, server_hostname=host) as secured:
            certificate = secured.getpeercert()
            assert certificate
            return str(certificate["subject"])
    finally:
        ours.close()
        thread.join()


def test_a_server_is_believed_under_its_names_alone(tmp_path: Path, authority: Authority) -> None:
    authority.issue(["fleet.example.org", "127.0.0.1"], tmp_path / "server.crt", tmp_path / "server.key")
    for host in ("fleet.example.org", "127.0.0.1"):
        assert "fleet.example.org" in greet(authority.certificate, tmp_path, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        greet(authority.certificate, tmp_path, "other.example.org")
    other = made_in(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(other.certificate, tmp_path, "127.0.0.1")


def test_keys_are_the_owners_alone_and_an_authority_is_not_overwritten(tmp_path: Path, authority: Authority) -> None:
    authority.issue(["localhost"], tmp_path / "server.crt", tmp_path / "server.key")
    assert authority.key.stat().st_mode & 0o777 == (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
    before = authority.certificate.read_bytes(), authority.key.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        authority.make("again")
    assert (authority.certificate.read_bytes(), authority.key.read_bytes()) == before
    assert len(fingerprint_of(authority.certificate.read_text())) == 64


def test_a_renewed_certificate_is_believed_by_those_who_knew_the_authority(tmp_path: Path, authority: Authority) -> None:
    for _ in range(2):
        authority.issue(["localhost"], tmp_path / "server.crt", tmp_path / "server.key")
        greet(authority.certificate, tmp_path, "localhost")
    made = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca is False  # whoever steals it cannot vouch for others


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, authority: Authority) -> None:
    other = made_in(tmp_path / "other")
    mixed = Authority(authority.certificate, other.key)
    with pytest.raises(ConfigError, match="is not the key of"):
        mixed.issue(["localhost"], tmp_path / "server.crt", tmp_path / "server.key")
    authority.key.write_text("no key")
    with pytest.raises(ConfigError, match="cannot be read"):
        authority.issue(["localhost"], tmp_path / "server.crt", tmp_path / "server.key")
    with pytest.raises(ConfigError, match="needs a name"):
        authority.issue([], tmp_path / "server.crt", tmp_path / "server.key")
