"""Making a coordinator, inviting a site to it, letting it in and out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from excise.common.errors import ConfigError, StorageError
from excise.common.invite import Invite, fingerprint_of
from excise.common.signing import read_key
from excise.server import members
from excise.server.config import read_server_config
from excise.server.fleet_proxy import write_configuration
from excise.server.link import Node
from excise.server.registrar import compare, online
from excise.server.setup import AUTHORITY, AUTHORITY_KEY, SERVER_CERTIFICATE, SERVER_KEY, SIGNING_KEY, init
from tests.coordinators import network


def test_a_coordinator_is_made_once_with_keys_of_its_own(tmp_path: Path, excise: Callable[..., Any]) -> None:
    given = ["server", "init", "--name", "network", "--host", "fleet.example.org", "--port", "9443", "--folder", "co"]
    code, _, err = excise(*given)
    assert code == 0, err
    config = read_server_config(Path("co/server.toml"))
    assert (config.name, config.address, config.link_port) == ("network", "fleet.example.org:9443", 18000)
    assert config.runs == tmp_path / "co" / "runs"
    assert fingerprint_of(Path("co", AUTHORITY).read_text()) in err
    for key in (AUTHORITY_KEY, SERVER_KEY, SIGNING_KEY):
        assert Path("co", key).stat().st_mode & 0o777 == 0o600
    read_key(Path("co", SIGNING_KEY))
    code, _, err = excise(*given)
    assert (code, "exists already" in err) == (2, True)


@pytest.mark.parametrize(
    "wrong",
    [{"name": "St Mary"}, {"hosts": []}, {"hosts": ["münchen"]}, {"hosts": ["a b"]}, {"fleet_port": 18000}, {"link_port": 0}],
)
def test_what_cannot_be_used_leaves_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        init(tmp_path / "co", **{"name": "network", "hosts": ["localhost"]} | wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_invite_is_a_file_for_its_owner_alone(tmp_path: Path, excise: Callable[..., Any]) -> None:
    init(tmp_path / "co", "network", ["fleet.example.org"])
    server = tmp_path / "co" / "server.toml"
    code, _, err = excise("server", "invite", "st-mary", "--server", server)
    assert code == 0, err
    invite = Invite.read(Path("st-mary.toml"))
    assert (invite.site, invite.address, invite.api) == ("st-mary", "fleet.example.org:8443", "fleet.example.org:8444")
    assert invite.fingerprint in err
    assert Path("st-mary.toml").stat().st_mode & 0o777 == 0o600
    assert excise("server", "invite", "st-mary", "--server", server)[0] == 2  # it would be written over
    for name in ("St Mary", "", "a/b"):
        code, _, err = excise("server", "invite", name, "--to", "x.toml", "--server", server)
        assert code == 2, err
    assert not Path("x.toml").exists()


def test_a_certificate_is_renewed_by_the_same_authority(tmp_path: Path, excise: Callable[..., Any]) -> None:
    init(tmp_path / "co", "network", ["fleet.example.org"])
    server = tmp_path / "co" / "server.toml"
    before = [(tmp_path / "co" / path).read_bytes() for path in (AUTHORITY, SERVER_CERTIFICATE)]
    server.write_text(server.read_text().replace("fleet.example.org", "new.example.org"))
    code, _, err = excise("server", "renew", "--server", server)
    assert code == 0, err
    after = [(tmp_path / "co" / path).read_bytes() for path in (AUTHORITY, SERVER_CERTIFICATE)]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
    names = x509.load_pem_x509_certificate(after[1]).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["new.example.org", "localhost"]
    (tmp_path / "co" / AUTHORITY_KEY).rename(tmp_path / "kept elsewhere")
    assert excise("server", "renew", "--server", server)[0] == 2


class Told:
    """A SuperLink that remembers what it was told."""

    def __init__(self, *keys: bytes) -> None:
        self.known = dict(enumerate(keys))
        self.names: dict[bytes, str] = {}

    def nodes(self) -> list[Node]:
        return [Node(number, key, online=False) for number, key in self.known.items()]

    def let_in(self, key: bytes, name: str) -> None:
        self.known[len(self.known) + 100] = key
        self.names[key] = name

    def let_out(self, node: Node) -> None:
        del self.known[node.id]


def test_the_superlink_is_brought_to_what_is_wanted() -> None:
    link = Told(b"stranger", b"kept")
    assert compare(link, {"a": b"kept", "b": b"new"}) == 2  # type: ignore[arg-type]
    assert set(link.known.values()) == {b"kept", b"new"}
    assert link.names == {b"new": "b"}
    assert compare(link, {"a": b"kept", "b": b"new"}) == 0  # type: ignore[arg-type]
    assert compare(link, {}) == 2  # type: ignore[arg-type]
    assert link.known == {}


def test_without_a_superlink_nobody_is_online(tmp_path: Path, excise: Callable[..., Any]) -> None:
    with network(tmp_path) as made:
        made.let_in("st-mary")
        assert online(made.store, made.folder, made.config) == {"st-mary": False}
        members.invite(made.store, made.folder, made.config, "st-joan", "tests")
        code, out, err = excise("server", "status", "--server", made.toml)
        assert code == 0, err
        assert "never up" in out
        assert re.search(r"site st-joan: since \S+ invited", out)
        assert re.search(r"site st-mary: since \S+ let in, not connected", out)


def test_a_state_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    config = init(tmp_path / "co", "network", ["localhost"])
    (tmp_path / "co" / "state").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_configuration(tmp_path / "co", config)


@pytest.mark.parametrize("folder", ["with blank", "semi;colon", "do$$ar", "new\nline", "brace{"])
def test_a_path_that_nginx_would_misread_is_refused(tmp_path: Path, folder: str) -> None:
    config = init(tmp_path / folder, "network", ["localhost"])
    with pytest.raises(ConfigError, match="nginx cannot be told the path"):
        write_configuration(tmp_path / folder, config)
