"""A coordinator as its own command runs it: SuperLink on loopback, nginx in front, and only the fleet comes through."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from excise.client.config import read_site_config
from excise.client.joining import join
from excise.client.requests import Requests, Standing
from excise.client.setup import make_node_key
from excise.client.site import open_site
from excise.common.bundle import bundle_digest
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.signing import make_key
from excise.common.supervisor import read_status
from excise.common.weights import digest, load_weights, save_weights, snapshot
from excise.server.config import ServerConfig
from excise.server.deploy import LINK, PROXY
from excise.server.registrar import admit, revoke, sites_of
from excise.server.setup import AUTHORITY, init, invite
from tests.deployment import ROOT, eventually, free_port, listens
from tests.dicoms import write_hospital, write_site_toml

SECRET = "a secret of this site's own"


@dataclass
class Running:
    """A coordinator that is up, and the process that keeps it so."""

    folder: Path
    config: ServerConfig
    process: subprocess.Popen[bytes]


def start(*command: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "excise.cli", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("coordinator")
    config = init(folder, "network", ["localhost"], free_port(), free_port())
    process = start("server", "up", "--server", folder / "server.toml")
    try:
        eventually(lambda: listens(config.fleet_port) and listens(config.link_port), 60, "the coordinator does not listen")
        yield Running(folder, config, process)
    finally:
        end(process)


@pytest.fixture(scope="module")
def site(coordinator: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site that joined by its invite, was let in, and is up."""
    folder = tmp_path_factory.mktemp("site")
    write_hospital(folder)
    toml = write_site_toml(
        folder,
        name="st-mary",
        data={"labels": "labels.csv"},
        split={"key": SECRET},
        policy={"bundles": [bundle_digest()], "approval": True, "min_count": 2},
    )
    make_key(folder / "keys" / "signing.pem")
    make_node_key(folder / "keys" / "node")
    made = invite(coordinator.folder, coordinator.config, "st-mary")
    join(toml, made, made.fingerprint)
    open_site(toml)
    admit(coordinator.folder, "st-mary", folder / "keys" / "node.pub")
    process = start("site", "up", "--site", toml)
    try:
        yield toml
    finally:
        end(process)


def online(coordinator: Running) -> bool:
    return sites_of(coordinator.folder, coordinator.config).get("st-mary", False)


def asked(coordinator: Running, path: str, method: str = "POST") -> int:
    """The status of an answer through the proxy."""
    context = ssl.create_default_context(cafile=str(coordinator.folder / AUTHORITY))
    connection = HTTPSConnection("localhost", coordinator.config.fleet_port, timeout=20, context=context)
    connection.putrequest(method, path, skip_host=False)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_site_that_joined_comes_online(coordinator: Running, site: Path) -> None:
    eventually(lambda: online(coordinator), 60, "the site does not connect")
    assert read_site_config(site).coordinator is not None


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
def test_nothing_but_the_fleet_comes_through(coordinator: Running, path: str) -> None:
    assert asked(coordinator, path) in (400, 403)


def test_the_fleet_comes_through_and_the_link_asks_for_a_key(coordinator: Running) -> None:
    assert asked(coordinator, "/v1/fleet/activate-node") not in (403, 502)


def test_the_superlink_listens_on_loopback_alone(coordinator: Running) -> None:
    with socket.socket() as probe:
        probe.settimeout(5)
        for address in socket.getaddrinfo(socket.gethostname(), coordinator.config.link_port, socket.AF_INET):
            if not str(address[4][0]).startswith("127."):
                assert probe.connect_ex(address[4]) != 0


def test_who_knows_another_authority_is_not_believed(coordinator: Running, tmp_path: Path) -> None:
    init(tmp_path / "other", "other", ["localhost"])
    context = ssl.create_default_context(cafile=str(tmp_path / "other" / AUTHORITY))
    with pytest.raises(ssl.SSLCertVerificationError):
        HTTPSConnection("localhost", coordinator.config.fleet_port, timeout=20, context=context).request("GET", "/")


@pytest.mark.parametrize("part", [LINK, PROXY])
def test_what_is_killed_is_started_again_and_the_site_comes_back(coordinator: Running, site: Path, part: str) -> None:
    eventually(lambda: online(coordinator), 60, "the site does not connect")
    before = read_status(coordinator.config.state)
    assert before is not None
    os.kill(_process_of(coordinator, part), signal.SIGKILL)

    def again() -> bool:
        now = read_status(coordinator.config.state)
        return now is not None and now.units[part].restarts == before.units[part].restarts + 1 and now.units[part].running

    eventually(again, 30, f"{part} is not started again")
    time.sleep(1)
    eventually(lambda: listens(coordinator.config.fleet_port) and online(coordinator), 90, "the site does not come back")


def _process_of(coordinator: Running, part: str) -> int:
    word = {LINK: b"flower-superlink", PROXY: b"nginx"}[part]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command, parent = path.read_bytes(), path.with_name("stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if word in command and int(parent) == coordinator.process.pid:
            return int(path.parent.name)
    raise AssertionError(f"no process of {part}")


SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
REQUEST = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
SETTINGS = """
[unlearning.local]
rounds = 2
steps = 3

[rounds]
watch = false
deadline = 60
"""


def carried_out(coordinator: Running, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "excise.cli", "server", *map(str, command), "--server", coordinator.folder / "server.toml"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=200,
    )


def test_a_run_waits_for_approval_survives_the_superlink_and_ends(coordinator: Running, site: Path, tmp_path: Path) -> None:
    eventually(lambda: online(coordinator), 60, "the site does not connect")
    (tmp_path / "mr7.toml").write_text(REQUEST.to_toml())
    (tmp_path / "settings.toml").write_text(SETTINGS)
    save_weights(snapshot(build_model(SPEC)), tmp_path / "deployed.safetensors")
    described = ["--classes", 2, "--size", 16, "--width", 0.05, "--settings", tmp_path / "settings.toml"]
    asked = ["run", tmp_path / "mr7.toml", "--model-weights", tmp_path / "deployed.safetensors", *described]
    done = carried_out(coordinator, *asked)
    assert done.returncode == 4, done.stderr
    assert "refused round status" in done.stderr
    assert "not_approved" in done.stderr
    assert carried_out(coordinator, *asked).returncode == 2  # there is such a run: it is resumed
    Requests(site.parent).decide(REQUEST, Standing.APPROVED, "Dr. Noether", "")

    events = coordinator.config.runs / "mr7" / "events.jsonl"
    with ThreadPoolExecutor(1) as pool:
        dies = pool.submit(carried_out, coordinator, "resume", "mr7")
        eventually(lambda: "unlearned_round" in events.read_text(), 100, "no round ends")
        os.kill(_process_of(coordinator, LINK), signal.SIGKILL)
        assert dies.result().returncode != 0
    assert not (coordinator.config.runs / "mr7" / "model.safetensors").exists()
    eventually(lambda: listens(coordinator.config.link_port) and online(coordinator), 90, "the site does not come back")
    done = carried_out(coordinator, "resume", "mr7")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert sum(event["event"] == "unlearned_round" for event in told) == 2  # the first was not done again
    assert told[-1]["event"] == "finished"
    revised = load_weights(coordinator.config.runs / "mr7" / "model.safetensors")
    assert told[-1]["digest"] == digest(revised) != digest(load_weights(tmp_path / "deployed.safetensors"))


def test_a_site_that_is_revoked_is_out(coordinator: Running, site: Path) -> None:
    eventually(lambda: online(coordinator), 60, "the site does not connect")
    revoke(coordinator.folder, "st-mary")
    eventually(lambda: sites_of(coordinator.folder, coordinator.config) == {}, 20, "it is still let in")
    admit(coordinator.folder, "st-mary", site.parent / "keys" / "node.pub")
    eventually(lambda: online(coordinator), 120, "a site that is let in again does not connect")
