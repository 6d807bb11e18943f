"""Joining: only the coordinator whose fingerprint was told otherwise is trusted, and nothing is written for any other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_csr

from excise.client import joining
from excise.client.config import read_site_config
from excise.client.coordinator import Coordinator
from excise.client.joining import join, renew
from excise.common.errors import ConfigError, MessageError, StorageError
from excise.common.invite import Invite, fingerprint_of
from excise.common.signing import public_hex, read_key
from excise.server import members
from excise.server.setup import SIGNING_KEY, sites_authority
from tests.certificates import certificate
from tests.coordinators import listening, network
from tests.dicoms import write_site_toml


@pytest.fixture
def invite(tmp_path: Path) -> Invite:
    pem = certificate(tmp_path / "coordinator")[0].read_text()
    where = {"address": "fleet.example.org:8443", "api": "fleet.example.org:8444", "expires": "2026-01-01"}
    return Invite(site="site-1", **where, authority=pem, fingerprint=fingerprint_of(pem), certificate=pem, key="")


def test_a_site_joins_and_keeps_its_comments(tmp_path: Path, excise: Callable[..., Any]) -> None:
    with network(tmp_path) as made, listening(made):
        site = made.site("st-mary")
        site.write_text("# mine\n" + site.read_text())
        sent = members.invite(made.store, made.folder, made.config, "st-mary", "tests")
        (tmp_path / "invite.toml").write_text(sent.to_toml())
        told = ":".join(sent.fingerprint.upper()[i : i + 2] for i in range(0, 64, 2))  # as openssl writes it
        asked = ["site", "join", tmp_path / "invite.toml", "--fingerprint", f"SHA256 {told}", "--site", site]
        code, _, err = excise(*asked)
        assert code == 0, err
        assert made.keys("st-mary")[0].fingerprint in err
        assert site.read_text().startswith("# mine\n")
        joined = read_site_config(site).coordinator
        assert joined is not None
        assert (joined.address, joined.api, joined.host) == (made.config.address, made.config.api, "localhost")
        assert joined.key == public_hex(read_key(made.folder / SIGNING_KEY))
        assert joined.ca.read_text() == sent.authority
        code, _, err = excise(*asked)
        assert (code, f"has joined {made.config.address} already" in err) == (2, True)


def test_joining_that_was_stopped_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with network(tmp_path) as made, listening(made):
        site, sent = made.site("st-mary"), members.invite(made.store, made.folder, made.config, "st-mary", "tests")
        monkeypatch.setattr(joining, "write_atomically", _fails)
        with pytest.raises(StorageError):
            join(site, sent, sent.fingerprint)
        assert read_site_config(site).coordinator is None
        monkeypatch.undo()
        assert join(site, sent, sent.fingerprint) == made.keys("st-mary")[0].fingerprint


def _fails(*_: object) -> None:
    raise StorageError("the disk is full")


def test_without_its_coordinator_nothing_is_joined(tmp_path: Path) -> None:
    with network(tmp_path) as made:
        site, sent = made.site("st-mary"), members.invite(made.store, made.folder, made.config, "st-mary", "tests")
        with pytest.raises(ConfigError, match="does not answer"):
            join(site, sent, sent.fingerprint)
        assert read_site_config(site).coordinator is None


@pytest.mark.parametrize("what", ["fingerprint", "site", "file"])
def test_what_does_not_fit_is_not_joined(tmp_path: Path, invite: Invite, excise: Callable[..., Any], what: str) -> None:
    site = write_site_toml(tmp_path / "site", name="site-2" if what == "site" else "site-1")
    before = {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}
    text = invite.to_toml()
    if what == "file":  # somebody put another authority into it
        text = invite.to_toml().replace(invite.authority, certificate(tmp_path / "foreign")[0].read_text())
    (tmp_path / "invite.toml").write_text(text)
    told = "00" * 32 if what == "fingerprint" else invite.fingerprint
    code, _, err = excise("site", "join", tmp_path / "invite.toml", "--fingerprint", told, "--site", site)
    assert code == 2
    assert {"fingerprint": "do not join", "site": "invite is for the site 'site-1'", "file": "changed on its way"}[what] in err
    assert before == {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}


def test_a_second_authority_in_an_invite_is_refused(tmp_path: Path, invite: Invite) -> None:
    both = invite.authority + certificate(tmp_path / "foreign")[0].read_text()
    text = invite.to_toml().replace(invite.authority, both)
    (tmp_path / "invite.toml").write_text(text)
    with pytest.raises(ConfigError, match="expected one certificate, got 2"):
        Invite.read(tmp_path / "invite.toml")


@pytest.mark.parametrize("text", ["", "site = ", 'site = "a"\n', "authority = 'no certificate'\n"])
def test_what_is_no_invite_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "invite.toml").write_text(text)
    with pytest.raises(ConfigError):
        Invite.read(tmp_path / "invite.toml")
    with pytest.raises(ConfigError, match="no invite at"):
        Invite.read(tmp_path / "none.toml")


INJECTED = 'ab"\n[policy]\nkinds = ["site"]\n#'


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda certificate, _: (certificate, INJECTED), "not 64 hexadecimal digits"),
        (lambda certificate, key: (certificate, f"{key}\n"), "not 64 hexadecimal digits"),
        (lambda certificate, key: (certificate, key.upper().replace("0", "A")), "not 64 hexadecimal digits"),
        (lambda certificate, key: ("no certificate", key), "not one certificate"),
        (lambda certificate, key: (certificate * 2, key), "not one certificate"),
        (lambda certificate, key: (OTHERS["key"], key), "not for the key and the name of 'st-mary'"),
        (lambda certificate, key: (OTHERS["name"], key), "not for the key and the name of 'st-mary'"),
    ],
    ids=["a key with a table behind it", "a line end", "capitals", "no certificate", "two", "another's key", "another name"],
)
def test_a_coordinator_writes_nothing_of_its_own_into_a_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, str], tuple[str, str]], reason: str
) -> None:
    with network(tmp_path) as made, listening(made):
        site, sent = made.site("st-mary"), members.invite(made.store, made.folder, made.config, "st-mary", "tests")
        own = load_pem_x509_csr(made.keys("st-mary")[0].request.encode()).public_key()
        stranger = ec.generate_private_key(ec.SECP384R1()).public_key()
        vouch = sites_authority(made.folder).vouch
        for what, name, key in (("key", "st-mary", stranger), ("name", "another", own)):
            assert isinstance(key, ec.EllipticCurvePublicKey)
            OTHERS[what] = vouch("site", name, key, timedelta(days=1)).public_bytes(Encoding.PEM).decode()
        before = {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}
        whole = Coordinator.join
        monkeypatch.setattr(Coordinator, "join", lambda *given: answer(*whole(*given)))
        with pytest.raises(MessageError, match=reason):
            join(site, sent, sent.fingerprint)
        assert before == {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}
        monkeypatch.undo()
        join(site, sent, sent.fingerprint)
        before = {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}
        members.admit(made.store, "st-mary", made.keys("st-mary")[0].fingerprint, "tests")
        monkeypatch.setattr(Coordinator, "renew", lambda *_: OTHERS["key"])
        with pytest.raises(MessageError, match="not for the key"):
            renew(site)
        assert before == {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}


OTHERS: dict[str, str] = {}


@pytest.mark.parametrize("end", ["[[later]]\nx = 1\n", "[coordinator.more]\nx = 1\n"])
def test_a_site_toml_that_nothing_can_be_added_to_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    with network(tmp_path) as made, listening(made):
        site, sent = made.site("st-mary"), members.invite(made.store, made.folder, made.config, "st-mary", "tests")
        config, text = read_site_config(site), site.read_text() + end
        site.write_text(text)
        monkeypatch.setattr(joining, "read_site_config", lambda _: config)  # it was changed since it was read
        with pytest.raises(ConfigError, match="which is as it was"):
            join(site, sent, sent.fingerprint)
        assert site.read_text() == text
