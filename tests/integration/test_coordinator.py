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
from excise.client.requests import Requests
from excise.client.setup import make_node_key
from excise.client.site import open_site
from excise.common.bundle import bundle_digest
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.signing import make_key, public_hex, read_key
from excise.common.supervisor import read_status
from excise.common.weights import digest, load_weights, save_weights, snapshot
from excise.server.config import ServerConfig, store_of
from excise.server.deploy import API, LINK, PROXY, REGISTRAR
from excise.server.members import admit, invite
from excise.server.registrar import online as connected_sites
from excise.server.setup import AUTHORITY, init
from tests.deployment import ROOT, eventually, free_port, listens
from tests.dicoms import write_hospital, write_site_toml


@dataclass
class Running:
    """A coordinator that is up, and the process that keeps it so."""

    folder: Path
    config: ServerConfig
    process: subprocess.Popen[bytes]

    @property
    def toml(self) -> Path:
        return self.folder / "server.toml"


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
    config = init(folder, "network", ["localhost"], free_port(), free_port(), free_port())
    process = start("server", "up", "--server", folder / "server.toml")
    try:
        ports = (config.fleet_port, config.link_port, config.api_port)
        eventually(lambda: all(map(listens, ports)), 60, "the coordinator does not listen")
        yield Running(folder, config, process)
    finally:
        end(process)


NAMES = ("st-mary", "st-joan", "st-luke")


def made_site(folder: Path, name: str) -> Path:
    """A site of its own: images, keys, policy."""
    write_hospital(folder, prefix=f"{name}-")
    toml = write_site_toml(
        folder,
        name=name,
        data={"labels": "labels.csv"},
        split={"key": f"a secret of {name}'s own"},
        policy={"bundles": [bundle_digest()], "approval": True, "min_count": 2},
    )
    make_key(folder / "keys" / "signing.pem")
    make_node_key(folder / "keys" / "node")
    return toml


@pytest.fixture(scope="module")
def sites(coordinator: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Three sites that joined by their invites, were let in, and are up."""
    tomls, processes = [], []
    try:
        with store_of(coordinator.toml) as store:
            for name in NAMES:
                toml = made_site(tmp_path_factory.mktemp(name), name)
                made = invite(store, coordinator.folder, coordinator.config, name, "tests")
                fingerprint = join(toml, made, made.fingerprint)
                open_site(toml)
                admit(store, name, fingerprint, "tests")
                processes.append(start("site", "up", "--site", toml))
                tomls.append(toml)
        yield tomls
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            end(process)


@pytest.fixture(scope="module")
def site(sites: list[Path]) -> Path:
    return sites[0]


def online(coordinator: Running, *names: str) -> bool:
    """Whether these sites are connected; all without names."""
    with store_of(coordinator.toml) as store:
        there = connected_sites(store, coordinator.folder, coordinator.config)
    return all(there.get(name, False) for name in names or NAMES)


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
    eventually(lambda: online(coordinator), 60, "the sites do not connect")
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


@pytest.mark.parametrize("part", [LINK, PROXY, REGISTRAR, API])
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
    ports = (coordinator.config.fleet_port, coordinator.config.api_port)
    eventually(lambda: all(map(listens, ports)) and online(coordinator), 90, "the sites do not come back")


def _process_of(coordinator: Running, part: str) -> int:
    word = {LINK: b"flower-superlink", PROXY: b"nginx", REGISTRAR: b"registrar", API: b"api.serve"}[part]
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


def said(*command: object, code: int = 0) -> str:
    """What a command of excise's says; it ends with this exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "excise.cli", *map(str, command)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=500,
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_from_a_request_to_a_model_in_use_at_the_sites(coordinator: Running, sites: list[Path], tmp_path: Path) -> None:
    at, by = ("--server", coordinator.toml), ("--by", "Ada")
    eventually(lambda: online(coordinator), 60, "the sites do not connect")
    (tmp_path / "mr7.toml").write_text(REQUEST.to_toml())
    (tmp_path / "settings.toml").write_text(SETTINGS)
    save_weights(snapshot(build_model(SPEC)), tmp_path / "deployed.safetensors")
    described = ("--classes", 2, "--size", 16, "--width", 0.05)
    said("server", "model", tmp_path / "deployed.safetensors", *described, *by, *at)
    assert "waits for st-joan, st-luke, st-mary" in said("server", "requests", "draft", tmp_path / "mr7.toml", *by, *at)
    assert "waits for st-joan" in said("server", "run", "mr7", "--settings", tmp_path / "settings.toml", *by, *at, code=4)

    kept = [Requests(toml.parent) for toml in sites]
    eventually(lambda: all(one.get("mr7") for one in kept), 30, "the request does not come to the sites")
    for toml in sites:
        said("site", "approve", "mr7", "--by", "Dr. Noether", "--site", toml)
    assert "request mr7: approved, waits for the coordinator since" in said("server", "status", *at)

    run = coordinator.config.runs / "mr7"
    with ThreadPoolExecutor(1) as pool:
        dies = pool.submit(said, "server", "run", "mr7", "--settings", tmp_path / "settings.toml", *by, *at, code=1)
        eventually(lambda: "unlearned_round" in events_of(run), 300, "no round ends")
        os.kill(_process_of(coordinator, LINK), signal.SIGKILL)
        dies.result()
    assert not (run / "model.safetensors").exists()
    eventually(lambda: listens(coordinator.config.link_port) and online(coordinator), 90, "the sites do not come back")
    said("server", "resume", "mr7", *at)
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "unlearned_round" for event in told) == 2  # the first was not done again
    revised = digest(load_weights(run / "model.safetensors"))
    assert told[-1]["event"] == "finished"
    assert told[-1]["digest"] == revised != digest(load_weights(tmp_path / "deployed.safetensors"))

    said("server", "promote", "mr7", *by, "--why", "it forgot", *at, code=2)  # nobody signed yet
    assert "request mr7: candidate, waits for st-joan, st-luke, st-mary" in said("server", "status", *at)
    for toml in sites:
        said("site", "sign", "mr7", "--by", "Dr. Noether", "--site", toml)
    said("server", "verify", "mr7", *by, "--override", "a model of noise is never good", *at)
    said("server", "promote", "mr7", *by, "--why", "it forgot", *at)
    known = [part for toml in sites for part in ("--key", f"{toml.parent.name[:7]}={public_key(toml)}")]
    assert "✗" not in said("evidence", "verify", run / "evidence.json", *known)
    for toml in sites:
        said("site", "fetch", "--use", "--site", toml)
        assert digest(load_weights(toml.parent / "models" / "2.safetensors")) == revised
    status = json.loads(said("server", "status", "--json", *at))
    assert (status["model"], {one["model"] for one in status["sites"]}) == (2, {2})
    assert "as it was written" in said("server", "audit", "verify", *at)
    said("server", "rollback", *by, "--why", "a test", *at)
    assert "request mr7: rolled back, is at its end" in said("server", "status", *at)
    said("server", "export", tmp_path / "out", *at)
    assert "# Model 1" in (tmp_path / "out" / "README.md").read_text()


def events_of(run: Path) -> str:
    return (run / "events.jsonl").read_text() if (run / "events.jsonl").exists() else ""


def public_key(toml: Path) -> str:
    return public_hex(read_key(toml.parent / "keys" / "signing.pem"))


def test_a_second_coordinator_on_the_same_store_does_not_come_up(coordinator: Running) -> None:
    other = coordinator.folder / "second.toml"
    other.write_text(coordinator.toml.read_text())
    assert "is held by a process" in said("server", "up", "--server", other, code=2)


def test_a_site_that_is_revoked_is_out(coordinator: Running, site: Path) -> None:
    eventually(lambda: online(coordinator, "st-mary"), 60, "the site does not connect")
    said("server", "revoke", "st-mary", "--by", "Ada", "--server", coordinator.toml)
    eventually(lambda: not online(coordinator, "st-mary"), 20, "it is still let in")
    assert "is let in no more" in said("site", "fetch", "--site", site, code=2)
