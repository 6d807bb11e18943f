"""The doctor: a site that is right passes, and each thing that is wrong is found, with a remedy."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.client.config import CoordinatorSettings, read_site_config
from excise.client.coordinator import IDENTITY
from excise.client.deploy import doctor
from excise.client.deploy.doctor import Finding, examine
from excise.client.setup import make_node_key
from excise.client.site import open_site
from excise.common.bundle import bundle_digest
from excise.common.signing import make_key
from tests.certificates import certificate
from tests.dicoms import write_hospital, write_site_toml

SECRET = {"key": "a secret of the site's own"}
ALLOWED = {"bundles": [bundle_digest()]}


class Coordinator:
    """A TLS server on loopback that answers anything, and may tell a wrong time."""

    def __init__(self, folder: Path, days: float = 90, slow: float = 0) -> None:
        self.ca, key = certificate(folder, days)

        class Answering(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(404)
                at = datetime.now(UTC) - timedelta(seconds=slow)
                self.send_header("Date", at.strftime("%a, %d %b %Y %H:%M:%S GMT"))
                self.end_headers()

        self.server = HTTPServer(("127.0.0.1", 0), Answering)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"localhost:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Callable[..., Coordinator]]:
    started: list[Coordinator] = []

    def start(**how: Any) -> Coordinator:
        started.append(Coordinator(tmp_path / f"coordinator-{len(started)}", **how))
        return started[-1]

    yield start
    for one in started:
        one.close()


def joined_to(address: str, ca: Path) -> dict[str, Any]:
    """A coordinator in site.toml; its own service does not listen."""
    return {"address": address, "api": "localhost:1", "key": "00" * 32, "ca": str(ca)}


def healthy(folder: Path, coordinator: Coordinator | None = None, **tables: dict[str, Any]) -> Path:
    """A site that is right: scanned, with keys, joined to the coordinator if there is one."""
    write_hospital(folder, patients=12)
    if coordinator:
        tables["coordinator"] = joined_to(coordinator.address, coordinator.ca)
    tables["split"] = SECRET
    tables["policy"] = ALLOWED | tables.get("policy", {})
    site = write_site_toml(folder, data={"labels": "labels.csv"}, **tables)
    make_key(folder / "keys" / "signing.pem")
    make_node_key(folder / "keys" / "node")
    open_site(site)
    return site


def point(folder: Path, address: str, ca: Path) -> None:
    """Let the site in `folder` look for its coordinator elsewhere."""
    where = joined_to(address, ca)
    write_site_toml(folder, data={"labels": "labels.csv"}, split=SECRET, policy=ALLOWED, coordinator=where)


def found(site: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(site)}


def wrong(site: Path) -> dict[str, str]:
    """What is found wrong and required, by name."""
    return {name: finding.told for name, finding in found(site).items() if finding.good is False and finding.required}


def test_a_site_that_is_right_passes(
    tmp_path: Path, coordinator: Callable[..., Coordinator], excise: Callable[..., Any]
) -> None:
    site = healthy(tmp_path / "site", coordinator())
    assert wrong(site) == {}
    assert all(finding.remedy or finding.good is not False for finding in examine(site))
    code, out, err = excise("site", "doctor", "--site", site)
    assert code == 0, err
    for name in ("site.toml", "key node", "policy", "disk", "decoder JPEG 2000", "images", "port", "certificate", "clock"):
        assert f"✓ {name}" in out
    code, out, _ = excise("site", "doctor", "--site", site, "--json")
    assert (code, json.loads(out)[0]["good"]) == (0, True)


def test_too_few_images_to_calibrate_or_to_judge_are_warned_of(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = healthy(tmp_path)  # a dozen patients, and a policy.min_count of ten
    few = {name: one for name, one in found(site).items() if name in ("reference images", "held-out images")}
    assert [(one.good, one.required, "policy.min_count" in one.remedy) for one in few.values()] == [(None, False, True)] * 2
    assert "– reference images: " in excise("site", "doctor", "--site", site)[1]
    site.write_text(site.read_text().replace("[policy]", "[policy]\nmin_count = 1"))
    assert "reference images" not in found(site)  # a changed policy counts at once


def test_a_site_that_has_not_joined_says_so(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = healthy(tmp_path)
    assert wrong(site) == {"coordinator": "not joined"}
    code, out, err = excise("site", "doctor", "--site", site)
    assert code == 2
    assert "✗ coordinator: not joined\n    → excise site join INVITE" in out
    assert "cannot start before this is right: coordinator" in err


def test_what_is_wrong_at_the_site_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = healthy(tmp_path, policy={"kinds": [], "bundles": ["0" * 64]})
    site.write_text(site.read_text().replace("a secret of the site's own", "excise"))
    (tmp_path / "keys" / "node").chmod(0o644)
    (tmp_path / "keys" / "signing.pem").unlink()
    (tmp_path / "forgotten.jsonl").write_text("damaged")
    monkeypatch.setattr(doctor, "FREE", 2**60)
    told = wrong(site)
    assert told["key node"] == "others may read it (mode 644)"
    assert "none at" in told["key signing.pem"]
    assert told["policy"] == "no kind of request is allowed"
    assert told["split.key"] == "known to everybody, or too short"
    assert told["bundle"] == "that of this release is not allowed"
    assert "GB free" in told["disk"]
    assert "is damaged" in told["images"]


def test_images_that_were_never_scanned_or_have_no_labels_are_found(tmp_path: Path) -> None:
    site = healthy(tmp_path)
    (tmp_path / "labels.csv").unlink()
    assert "no readable labels" in wrong(site)["images"]
    (tmp_path / "state" / "index.sqlite").unlink()
    assert wrong(site)["images"] == "never scanned"


def test_a_site_toml_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("name = ")
    (finding,) = examine(tmp_path / "site.toml")
    assert (finding.good, "is not TOML" in finding.told) == (False, True)


def test_a_missing_decoder_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        is_available = False
        missing_dependencies = ("gdcm - requires gdcm>=3.0.10",)

    monkeypatch.setattr(doctor, "get_decoder", lambda _: Absent)
    monkeypatch.setattr(doctor, "SELF_TESTS", {doctor.RLELossless: None})
    finding = found(healthy(tmp_path))["decoder RLE Lossless"]
    assert (finding.good, finding.remedy) == (False, "install gdcm - requires gdcm>=3.0.10")


def test_a_clock_that_is_wrong_by_a_day_is_found(tmp_path: Path, coordinator: Callable[..., Coordinator]) -> None:
    site = healthy(tmp_path / "site", coordinator(slow=86_400))
    ((name, told),) = wrong(site).items()
    assert (name, told[:4]) == ("clock", "8640")


def test_a_wrong_authority_is_found(tmp_path: Path, coordinator: Callable[..., Coordinator]) -> None:
    real, other = coordinator(), certificate(tmp_path / "other")[0]
    site = healthy(tmp_path / "site", real)
    point(tmp_path / "site", real.address, other)
    assert list(wrong(site)) == ["certificate"]
    assert "somebody may be listening" in found(site)["certificate"].remedy


def test_an_expired_certificate_is_found_and_one_that_ends_soon_is_told(
    tmp_path: Path, coordinator: Callable[..., Coordinator]
) -> None:
    expired = healthy(tmp_path / "expired", coordinator(days=-0.5))
    assert {"authority", "certificate"} <= set(wrong(expired))
    soon = healthy(tmp_path / "soon", coordinator(days=5))
    assert wrong(soon) == {}
    assert found(soon)["authority"].good is None
    assert "ends on" in found(soon)["authority"].told


@pytest.mark.parametrize(
    ("address", "name"), [("localhost:1", "port"), ("no-such-host.invalid:443", "name")], ids=["nobody listens", "no address"]
)
def test_a_coordinator_that_cannot_be_reached_is_found(tmp_path: Path, address: str, name: str) -> None:
    site = healthy(tmp_path / "site")
    ca = certificate(tmp_path / "other")[0]
    point(tmp_path / "site", address, ca)
    assert list(wrong(site)) == [name]


def test_a_port_that_speaks_no_tls_is_found(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    ca, address = certificate(tmp_path / "other")[0], f"localhost:{server.server_address[1]}"
    site = healthy(tmp_path / "site", coordinator=None)
    point(tmp_path / "site", address, ca)
    assert "no TLS" in wrong(site)["certificate"]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("free", "share", "good"), [(8, 1.0, True), (1, 1.0, None), (8, 0.1, None)])
def test_the_memory_of_a_gpu_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, share: float, good: bool | None
) -> None:
    write_hospital(tmp_path)
    config = read_site_config(write_site_toml(tmp_path, data={"labels": "labels.csv"}, limits={"gpu_share": share}))
    monkeypatch.setattr(doctor, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 2**30, 16 * 2**30))
    (finding,) = list(doctor._device(config))
    assert (finding.good, finding.required) == (good, False)
    assert finding.told == f"GPU, {free:.1f} of 16.0 GB free, at most {16 * share:.1f} used"


# ---- the coordinator's own service --------------------------------------------------------------------------------------


def service(folder: Path, days: float, begins: float = -1) -> dict[str, Finding]:
    """What is found of a service that nobody answers at, by a site whose own certificate lasts so many days."""
    ca, key = certificate(folder / "own", days, begins)
    (folder / "keys").mkdir()
    (folder / IDENTITY).write_text(key.read_text() + ca.read_text())
    config = read_site_config(write_site_toml(folder))
    coordinator = CoordinatorSettings(**joined_to("localhost:1", ca))
    return {one.name: one for one in doctor._service(folder, config.model_copy(update={"coordinator": coordinator}))}


@pytest.mark.parametrize(
    ("days", "begins", "good", "remedy", "then"),
    [
        (90, -1, True, "excise site renew", "in the firewall"),
        (5, -1, None, "excise site renew", "in the firewall"),
        (-0.5, -1, False, "ask the coordinator to revoke, invite and let this site join anew", "first the site's certificate"),
        (9, 2, False, "look at the clock", "first the site's certificate"),
    ],
    ids=["valid", "ends soon", "expired", "not yet"],
)
def test_the_end_of_the_sites_own_certificate_is_told_first(
    tmp_path: Path, days: float, begins: float, good: bool | None, remedy: str, then: str
) -> None:
    told = service(tmp_path, days, begins)
    assert list(told) == ["site's certificate", "coordinator's service"]
    first, second = told.values()
    assert (first.good, first.required, remedy in first.remedy) == (good, False, True)
    assert (second.good, second.required, then in second.remedy) == (False, False, True)


def test_a_site_without_a_certificate_for_the_service_is_told(tmp_path: Path) -> None:
    config = read_site_config(write_site_toml(tmp_path))
    coordinator = CoordinatorSettings(**joined_to("localhost:1", tmp_path / "none"))
    (told,) = doctor._service(tmp_path, config.model_copy(update={"coordinator": coordinator}))
    assert (told.name, told.good, told.remedy) == ("coordinator's service", False, "excise site join, by a new invite")
