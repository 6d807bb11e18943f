"""A coordinator as its own command runs it: SuperLink on loopback, nginx in front, and only the fleet comes through."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import httpx
import pytest

from excise.client.config import read_site_config
from excise.client.joining import join
from excise.client.requests import Requests
from excise.client.setup import make_node_key
from excise.client.site import open_site
from excise.common.bundle import bundle_digest
from excise.common.models import build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.signing import make_key, public_hex, read_key
from excise.common.supervisor import read_status
from excise.common.weights import digest, load_weights, save_weights, snapshot
from excise.server.config import store_of
from excise.server.deploy import API, DASHBOARD, LINK, PROXY, REGISTRAR
from excise.server.link import linked
from excise.server.members import invite
from excise.server.setup import AUTHORITY, init
from tests.coordinated import DESCRIBED, PASSWORD, SPEC, Coordinated, coordinated, end, events_of, here, kill, start
from tests.deployment import eventually
from tests.dicoms import write_hospital, write_site_toml

NAMES = ("st-joan", "st-luke")
REQUEST = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
REFUSED = "Failed to activate SuperNode"
"""What Flower writes into the log of a site whose key the SuperLink does not know."""
SETTINGS = """
[unlearning.local]
rounds = 1
steps = 3

[unlearning.search]
max_steps = 3

[rounds]
watch = false
deadline = 120

[verification]
resurfacing = false
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinated]:
    with coordinated(tmp_path_factory.mktemp("network"), NAMES) as running:
        yield running


def asked(made: Coordinated, path: str, method: str = "POST") -> int:
    """The status of an answer through the proxy."""
    context = ssl.create_default_context(cafile=str(made.folder / AUTHORITY))
    connection = HTTPSConnection("localhost", made.config.fleet_port, timeout=20, context=context)
    connection.putrequest(method, path, skip_host=False)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_sites_that_joined_come_online(made: Coordinated) -> None:
    assert made.connected()
    assert all(read_site_config(toml).coordinator is not None for toml in made.sites.values())


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/control/start-run",
        "/v1/runtime/pull",
        "/",
        "/v1/fleet",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1//control/list-runs",
        "/V1/fleet/../Control/x",
        "//v1/control/list-runs",
    ],
)
def test_nothing_but_the_fleet_comes_through(made: Coordinated, path: str) -> None:
    assert asked(made, path) in (400, 403)


def test_the_fleet_comes_through_and_the_link_asks_for_a_key(made: Coordinated) -> None:
    assert asked(made, "/v1/fleet/activate-node") not in (403, 502)


def test_the_superlink_listens_on_loopback_alone(made: Coordinated) -> None:
    with socket.socket() as probe:
        probe.settimeout(5)
        for address in socket.getaddrinfo(socket.gethostname(), made.config.link_port, socket.AF_INET):
            if not str(address[4][0]).startswith("127."):
                assert probe.connect_ex(address[4]) != 0


def test_who_knows_another_authority_is_not_believed(made: Coordinated, tmp_path: Path) -> None:
    init(tmp_path / "other", "other", ["localhost"])
    context = ssl.create_default_context(cafile=str(tmp_path / "other" / AUTHORITY))
    with pytest.raises(ssl.SSLCertVerificationError):
        HTTPSConnection("localhost", made.config.fleet_port, timeout=20, context=context).request("GET", "/")


def test_a_site_that_joined_and_that_nobody_let_in_does_not_connect(made: Coordinated, tmp_path: Path) -> None:
    write_hospital(tmp_path / "st-paul")
    toml = write_site_toml(
        tmp_path / "st-paul",
        name="st-paul",
        data={"labels": "labels.csv"},
        split={"key": "a secret of st-paul's own"},
        policy={"bundles": [bundle_digest()], "approval": True, "min_count": 2},
    )
    make_key(toml.parent / "keys" / "signing.pem")
    make_node_key(toml.parent / "keys" / "node")
    with store_of(made.toml) as store:
        sent = invite(store, made.folder, made.config, "st-paul", "tests")
    join(toml, sent, sent.fingerprint)
    open_site(toml)
    process, log = start("site", "up", "--site", toml), toml.parent / "state" / "node" / "log"
    eventually(lambda: log.exists() and REFUSED in log.read_text(), 60, "it is not refused")
    end(process)
    with linked(made.config.link_port, made.folder / AUTHORITY) as link:
        assert len(link.nodes()) == len(NAMES)
    assert "asks to be let in: excise server admit st-paul" in made.server("status")
    assert "is not let in yet" in here("site", "fetch", "--site", toml, code=2)


@pytest.mark.parametrize("part", [LINK, PROXY, REGISTRAR, API, DASHBOARD])
def test_what_is_killed_is_started_again_and_the_sites_come_back(made: Coordinated, part: str) -> None:
    eventually(made.connected, 60, "the sites do not connect")
    before = read_status(made.config.state)
    assert before is not None
    kill(made.process_of(part))

    def again() -> bool:
        now = read_status(made.config.state)
        return now is not None and now.units[part].restarts == before.units[part].restarts + 1 and now.units[part].running

    eventually(again, 30, f"{part} is not started again")
    time.sleep(1)
    eventually(lambda: made.listens and made.connected(), 90, "the sites do not come back")


def test_the_dashboard_is_up_and_people_sign_in(made: Coordinated) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{made.config.dashboard_port}", timeout=20) as client:
        assert client.get("/").status_code == 401
        assert client.post("/login", data={"name": "ada", "password": PASSWORD}).status_code == 303
        eventually(lambda: client.get("/sites").text.count("let in, online") == len(NAMES), 60, "the sites are not shown")


def test_from_a_request_to_a_model_in_use_at_the_sites(made: Coordinated, tmp_path: Path) -> None:
    by = ("--by", "Ada")
    eventually(made.connected, 60, "the sites do not connect")
    (tmp_path / "mr7.toml").write_text(REQUEST.to_toml())
    (tmp_path / "settings.toml").write_text(SETTINGS)
    save_weights(snapshot(build_model(SPEC)), tmp_path / "deployed.safetensors")
    made.server("model", tmp_path / "deployed.safetensors", *DESCRIBED, *by)
    assert "waits for st-joan, st-luke" in made.server("requests", "draft", tmp_path / "mr7.toml", *by)
    asked = ("run", "mr7", "--settings", tmp_path / "settings.toml", *by)
    assert "waits for st-joan" in made.server(*asked, code=4)

    kept = [Requests(toml.parent) for toml in made.sites.values()]
    eventually(lambda: all(one.get("mr7") for one in kept), 30, "the request does not come to the sites")
    for name in NAMES:
        made.site(name, "approve", "mr7", "--by", "Dr. Noether")
    assert "request mr7: approved, waits for the coordinator since" in made.server("status")

    made.server(*asked)
    run = made.config.runs / "mr7"
    told = [json.loads(line) for line in events_of(run).splitlines()]
    assert sum(event["event"] == "unlearned_round" for event in told) == 1
    revised = digest(load_weights(run / "model.safetensors"))
    (finished,) = [event for event in told if event["event"] == "finished"]
    assert finished["digest"] == revised != digest(load_weights(tmp_path / "deployed.safetensors"))

    made.server("promote", "mr7", *by, "--why", "it forgot", code=2)  # nobody signed yet
    assert "request mr7: candidate, waits for st-joan, st-luke" in made.server("status")
    for name in NAMES:
        made.site(name, "sign", "mr7", "--by", "Dr. Noether")
    made.server("verify", "mr7", *by, "--override", "a model of noise is never good")
    made.server("promote", "mr7", *by, "--why", "it forgot")
    known = [part for name in NAMES for part in ("--key", f"{name}={public_key(made, name)}")]
    assert "✗" not in here("evidence", "verify", run / "evidence.json", *known)
    for name in NAMES:
        made.site(name, "fetch", "--use")
        assert digest(load_weights(made.sites[name].parent / "models" / "2.safetensors")) == revised
    status = json.loads(made.server("status", "--json"))
    assert (status["model"], {one["model"] for one in status["sites"] if one["name"] in NAMES}) == (2, {2})
    assert "as it was written" in made.server("audit", "verify")
    made.server("rollback", 2, *by, "--why", "a test")
    assert "request mr7: rolled back, is at its end" in made.server("status")
    made.server("export", tmp_path / "out")
    assert "# Model 1" in (tmp_path / "out" / "README.md").read_text()


def public_key(made: Coordinated, name: str) -> str:
    return public_hex(read_key(made.sites[name].parent / "keys" / "signing.pem"))


def test_a_second_coordinator_on_the_same_store_does_not_come_up(made: Coordinated) -> None:
    other = made.folder / "second.toml"
    other.write_text(made.toml.read_text())
    assert "it is up already" in here("server", "up", "--server", other, code=2)


def test_a_site_that_is_revoked_is_out(made: Coordinated) -> None:
    eventually(lambda: made.connected("st-luke"), 60, "the site does not connect")
    made.server("revoke", "st-luke", "--by", "Ada")
    eventually(lambda: not made.connected("st-luke"), 20, "it is still let in")
    assert "is let in no more" in made.site("st-luke", "fetch", code=2)
