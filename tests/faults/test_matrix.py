"""Every process killed with SIGKILL at every stage of a run, on the real thing; it ends with the same model all the same.

Not a part of `make test`, for how long it takes: `make test-faults`. A run is a row of the matrix: one process killed in it at
each of its stages in turn. The runs have one seed, so they all have to end with one digest. The coordinator's folder is a
small filesystem of its own, which can be filled; to mount it takes root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from excise.client.deploy.supervisor import APPS, NODE
from excise.common.evidence import check
from excise.common.models import build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.weights import digest, load_weights, save_weights, snapshot
from excise.server.config import store_of
from excise.server.deploy import API, LINK, PROXY, REGISTRAR
from excise.server.evidence_pack import pack_of
from tests.coordinated import (
    DESCRIBED,
    SPEC,
    Coordinated,
    children,
    come_up,
    command_of,
    coordinated,
    events_of,
    kill,
    said,
)
from tests.deployment import eventually

NAMES = ("st-joan", "st-luke", "st-mary")
STAGES = {"status": "started", "reference": "status", "first round": "reference", "second round": "unlearned_round"}
"""Stages of a run, and the event after which each is under way."""
DISK = 256 << 20
"""Bytes of the coordinator's filesystem."""
SETTINGS = """
[unlearning.local]
rounds = 2
steps = 3

[rounds]
watch = false
deadline = 60

[verification]
resurfacing = false
"""


@dataclass
class Bench:
    """What all runs share."""

    made: Coordinated
    settings: Path
    expected: str = ""

    def draft(self, name: str) -> Path:
        """A request that every site approved; the folder of its run."""
        request = ForgetRequest(id=name, kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
        file = self.settings.with_name(f"{name}.toml")
        file.write_text(request.to_toml())
        self.made.server("requests", "draft", file, "--by", "Ada")
        for site in NAMES:
            self.made.site(site, "approve", file, "--by", "Dr. Noether")
        return self.made.config.runs / name

    def carry_out(self, name: str) -> str:
        """Run it, or let it go on; whatever ends it is told."""
        run = self.made.config.runs / name
        first = not (run / "plan.toml").exists()
        asked = ("run", name, "--by", "Ada", "--settings", self.settings) if first else ("resume", name)
        return said("server", *asked, "--server", self.made.toml, code=None)  # in a process of its own: tests do so in threads

    def finish(self, name: str) -> None:
        """Let it go on until it is at its end."""
        told = ""
        for _ in range(8):
            eventually(lambda: self.made.listens and self.made.connected(), 150, f"{name}: not everything comes back")
            told = self.carry_out(name)
            if '"finished"' in events_of(self.made.config.runs / name):
                return
        raise AssertionError(f"{name} does not end: {told}")

    def check(self, name: str) -> None:
        """The same model, no round twice in its history, whole evidence, and a whole audit log."""
        run = self.made.config.runs / name
        assert digest(load_weights(run / "model.safetensors")) == self.expected
        with store_of(self.made.toml) as store:
            assert [one.told for one in check(pack_of(store, name)) if one.good is False] == [
                f"{site}: no signature" for site in NAMES
            ]
            assert store.log_faults() == []


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    with mounted(folder / "coordinator"), coordinated(folder, NAMES) as made:
        save_weights(snapshot(build_model(SPEC)), folder / "deployed.safetensors")
        made.server("model", folder / "deployed.safetensors", *DESCRIBED, "--by", "Ada")
        (folder / "settings.toml").write_text(SETTINGS)
        one = Bench(made, folder / "settings.toml")
        one.draft("undisturbed")
        one.finish("undisturbed")
        one.expected = digest(load_weights(made.config.runs / "undisturbed" / "model.safetensors"))
        yield one


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A small filesystem at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free on the filesystem of `folder`; returns the file that takes them."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler


def of_coordinator(part: str) -> Callable[[Coordinated], None]:
    def kill_it(made: Coordinated) -> None:
        kill(made.process_of(part))

    return kill_it


def server_app(made: Coordinated) -> None:
    """The process in which the rounds are held."""
    waiting = [made.process_of(LINK)]
    while waiting:
        process = waiting.pop()
        waiting += children(process)
        if b"flwr-serverapp" in command_of(process):
            kill(process)


def of_site(what: str) -> Callable[[Coordinated], None]:
    words = {NODE: b"deploy.node", APPS: b"deploy.apps"}

    def kill_it(made: Coordinated) -> None:
        for process in children(made.processes["st-luke"].pid):
            if words[what] in command_of(process):
                kill(process)

    return kill_it


def coordinator(made: Coordinated) -> None:
    """All of it: the supervisor, and with it whatever it keeps up."""
    kill(made.process.pid)
    made.process.wait()
    made.process = come_up(made.toml)


def site(made: Coordinated) -> None:
    kill(made.processes["st-luke"].pid)
    made.processes["st-luke"].wait()
    made.up("st-luke")


PROCESSES: dict[str, Callable[[Coordinated], None]] = {
    "the SuperLink": of_coordinator(LINK),
    "the proxy": of_coordinator(PROXY),
    "the service": of_coordinator(API),
    "the registrar": of_coordinator(REGISTRAR),
    "the server app": server_app,
    "the coordinator": coordinator,
    "a node": of_site(NODE),
    "a node's apps": of_site(APPS),
    "a site": site,
}


@pytest.mark.parametrize("process", PROCESSES)
def test_killed_at_every_stage_it_ends_with_the_same_model(bench: Bench, process: str) -> None:
    name = "killed-" + process.replace(" ", "-").replace("'", "").lower()
    run = bench.draft(name)
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(bench.carry_out, name)
        for event in STAGES.values():
            while f'"event": "{event}"' not in events_of(run):
                if going.done():  # what was killed before ended the run
                    eventually(lambda: bench.made.listens and bench.made.connected(), 150, "not everything comes back")
                    going = pool.submit(bench.carry_out, name)
                time.sleep(0.2)
            PROCESSES[process](bench.made)
        going.result()
    bench.finish(name)
    bench.check(name)


def test_a_site_that_hangs_is_named_and_the_run_goes_on_when_it_is_back(bench: Bench) -> None:
    run = bench.draft("hung")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(bench.carry_out, "hung")
        eventually(lambda: '"event": "reference"' in events_of(run), 300, "the reference does not come")
        stopped = children(bench.made.processes["st-luke"].pid)
        for process in stopped:
            os.killpg(process, signal.SIGSTOP)
        told = going.result()
        for process in stopped:
            os.killpg(process, signal.SIGCONT)
    assert "st-luke" in told
    assert '"awaiting"' in events_of(run)
    bench.finish("hung")
    bench.check("hung")


@pytest.mark.parametrize("what", ["cut", "altered"])
def test_a_corrupted_checkpoint_costs_a_round_and_not_the_run(bench: Bench, what: str) -> None:
    run = bench.draft(f"checkpoint-{what}")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(bench.carry_out, run.name)
        # Before the second there is no earlier checkpoint to go on from (tests/integration/test_kills.py).
        eventually(lambda: events_of(run).count('"event": "unlearned_round"') == 2, 300, "the second round does not end")
        server_app(bench.made)
        going.result()
    path = run / "checkpoints" / "unlearned.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if what == "cut" else whole[:-8] + b"\xff" * 8)
    bench.finish(run.name)
    bench.check(run.name)


def test_a_full_disk_ends_the_run_and_not_what_was_done(bench: Bench) -> None:
    run = bench.draft("full")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(bench.carry_out, "full")
        eventually(lambda: '"event": "reference"' in events_of(run), 300, "the reference does not come")
        filler = fill(bench.made.folder)
        told = going.result()
        filler.unlink()
    assert "No space left" in told or "is the disk full?" in told
    bench.finish("full")
    bench.check("full")
