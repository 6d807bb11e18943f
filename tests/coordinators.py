"""A coordinator's folder with sites that are let in, for tests; by functions alone, or with its service listening."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cryptography import x509

from excise.client.joining import join, keys_of
from excise.client.setup import make_node_key
from excise.common.decision import Decision, Standing
from excise.common.identity import SiteKeys
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.signing import make_key, read_key, sign
from excise.common.weights import Weights, save_weights, snapshot
from excise.server import members, requests
from excise.server.api.serve import server_of
from excise.server.config import AUDIT_LOG, ServerConfig, read_server_config
from excise.server.registry import bring_in
from excise.server.setup import init, sites_authority
from excise.server.store import Store, open_store
from tests.deployment import free_ports
from tests.dicoms import write_site_toml

SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
OTHER = ForgetRequest(id="mr1", kind=RequestKind.DEVICE, where="StationName = MR1", reason="retired too")


@dataclass
class Network:
    """A coordinator and the folders of its sites."""

    folder: Path
    config: ServerConfig
    store: Store
    sites: dict[str, Path] = field(default_factory=dict)

    @property
    def toml(self) -> Path:
        return self.folder / "server.toml"

    def site(self, name: str) -> Path:
        """The site.toml of a new site, with keys, that has joined nobody."""
        toml = write_site_toml(self.folder.parent / name, name=name)
        make_key(toml.parent / "keys" / "signing.pem")
        make_node_key(toml.parent / "keys" / "node")
        self.sites[name] = toml
        return toml

    def keys(self, name: str) -> tuple[SiteKeys, str]:
        """A site's keys, and its signature of them."""
        folder = self.sites[name].parent
        keys = keys_of(folder, name)
        return keys, sign(read_key(folder / "keys" / "signing.pem"), keys.signed())

    def let_in(self, *names: str) -> None:
        """Sites that are invited, joined and let in, without the service."""
        for name in names:
            self.site(name)
            invite = members.invite(self.store, self.folder, self.config, name, "tests")
            serial = members.serial_of(x509.load_pem_x509_certificate(invite.certificate.encode()))
            keys, signature = self.keys(name)
            members.join(self.store, sites_authority(self.folder), name, serial, keys, signature)
            members.admit(self.store, name, keys.fingerprint, "tests")

    def join(self, name: str) -> Path:
        """A site that joined by its invite through the service, and is let in."""
        toml = self.site(name)
        invite = members.invite(self.store, self.folder, self.config, name, "tests")
        members.admit(self.store, name, join(toml, invite, invite.fingerprint), "tests")
        return toml

    def decide(
        self, name: str, request: ForgetRequest, standing: Standing = Standing.APPROVED, at: str = "2026-01-01"
    ) -> None:
        """What the people of a site decide."""
        decision = Decision(request.digest, standing, "Dr. Noether", "", at)
        key = read_key(self.sites[name].parent / "keys" / "signing.pem")
        requests.decide(self.store, name, request.id, decision, sign(key, decision.text()))

    def approved(self, *asked: ForgetRequest) -> None:
        """Requests that every site approved."""
        for request in asked:
            requests.draft(self.store, request, (), "tests")
            for name in self.sites:
                self.decide(name, request)

    def deployed(self) -> Weights:
        """A model that is in use."""
        weights = snapshot(build_model(SPEC))
        save_weights(weights, self.folder.parent / "deployed.safetensors")
        bring_in(self.store, self.folder, self.folder.parent / "deployed.safetensors", SPEC, "tests")
        return weights


@contextmanager
def network(at: Path, url: str = "") -> Iterator[Network]:
    """A new coordinator in the folder `at`; its store at `url`, else an SQLite file."""
    folder = at / "coordinator"
    config = init(folder, "network", ["localhost"], *free_ports(3))
    store = open_store(url or config.store, folder / AUDIT_LOG)
    try:
        yield Network(folder, config, store)
    finally:
        store.close()


@contextmanager
def copied(prepared: Path, at: Path) -> Iterator[Network]:
    """A copy, in the folder `at`, of a coordinator that was made in the folder `prepared` and closed, and of its sites."""
    shutil.copytree(prepared, at, dirs_exist_ok=True)
    folder = at / "coordinator"
    config = read_server_config(folder / "server.toml")
    sites = {toml.parent.name: toml for toml in sorted(at.glob("*/site.toml"))}
    store = open_store(config.store, folder / AUDIT_LOG)
    try:
        yield Network(folder, config, store, sites)
    finally:
        store.close()


@contextmanager
def ready(at: Path) -> Iterator[Network]:
    """A coordinator with a model in use and the sites a and b, in the folder `at`: a copy of one that is made once."""
    with copied(_made_ready(), at) as one:
        yield one


@cache
def _made_ready() -> Path:
    home = tempfile.TemporaryDirectory(prefix="excise-coordinator-")
    atexit.register(home.cleanup)
    with network(Path(home.name)) as one:
        one.let_in("a", "b")
        one.deployed()
    return Path(home.name)


@contextmanager
def listening(made: Network) -> Iterator[None]:
    """The coordinator's service, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> object:
        server, _ = server_of(made.store, made.folder, made.config)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(30)  # type: ignore[attr-defined]
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
