"""A coordinator that has been busy for years, for its dashboard to be measured on: many sites, many runs, one under way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from excise.client.joining import keys_of
from excise.client.setup import NODE_KEY, SIGNING_KEY, make_node_key
from excise.common.decision import Decision, Standing
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import TrainingSettings
from excise.common.signing import make_key, sign
from excise.server import members
from excise.server.carrying import LOCK
from excise.server.config import ServerConfig, store_of
from excise.server.decisions import reject
from excise.server.events import EVENTS
from excise.server.life import State
from excise.server.requests import decide, draft, move
from excise.server.setup import init, sites_authority
from excise.server.store import Store
from excise.simulations.bench.soak import noise_scenario, quick_rounds
from excise.simulations.run import new_run_folder, simulate

WHO = "bench"
WAITING = 8
"""Requests that wait for sites; the other ones were decided long ago."""
ROUNDS = 20
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Crowd:
    """A coordinator.

    Attributes
    ----------
    toml : its server.toml
    run : folder of the run that is under way
    finished : name of one that is at its end
    """

    toml: Path
    run: Path
    finished: str


def crowd(home: Path, sites: int, runs: int, progress: Progress) -> Crowd:
    """Make a coordinator with `sites` sites that are let in and `runs` runs, each with its request.

    One run is computed, with these sites in this process; the others are its copies under other names. The run under way is
    one whose end is cut off.
    """
    toml = home / "coordinator" / "server.toml"
    config = init(toml.parent, "network", ["localhost"])
    names = [f"site-{number}" for number in range(1, sites + 1)]
    with store_of(toml) as store:
        keys = dict[str, Ed25519PrivateKey]()
        for name in names:
            progress(f"letting {name} in")
            keys[name] = _let_in(store, toml.parent, config, home / "sites" / name, name)
        ran = _ran(home / "run", sites, progress)
        for number in range(runs):
            progress(f"run {number + 1} of {runs}")
            _request(store, number, runs, keys)
            copy = config.runs / _name(number)
            shutil.copytree(ran, copy, copy_function=os.link if number < runs - 1 else shutil.copy2)
        last = config.runs / _name(runs - 1)
        _cut(last)
    return Crowd(toml, last, _name(0))


def _name(number: int) -> str:
    return f"request-{number:03}"


def _let_in(store: Store, folder: Path, config: ServerConfig, at: Path, name: str) -> Ed25519PrivateKey:
    """A site that joined by its invite; returns the key with which its people sign."""
    key = make_key(at / "keys" / SIGNING_KEY)
    make_node_key(at / "keys" / NODE_KEY)
    keys = keys_of(at, name)
    invite = members.invite(store, folder, config, name, WHO)
    serial = members.serial_of(x509.load_pem_x509_certificate(invite.certificate.encode()))
    members.join(store, sites_authority(folder), name, serial, keys, sign(key, keys.signed()))
    members.admit(store, name, keys.fingerprint, WHO)
    return key


def _ran(folder: Path, sites: int, progress: Progress) -> Path:
    scenario = noise_scenario(
        folder.parent,
        sites,
        training=TrainingSettings(rounds=3, learning_rate=0.05),
        unlearning=quick_rounds(sites, ROUNDS),
    )

    def told(phase: str, done: int, total: int, _: str) -> None:
        progress(f"one run: {phase} {done} of {total}")

    return simulate(scenario, new_run_folder(folder, scenario), folder.parent / "cache", "inprocess", told).folder


def _request(store: Store, number: int, runs: int, keys: dict[str, Ed25519PrivateKey]) -> None:
    """The request of a run: the last is carried out, a few before it wait, the others were rejected."""
    name = _name(number)
    asked = ForgetRequest(id=name, kind=RequestKind.DEVICE, where=f"StationName = MR{number}", reason="retired")
    draft(store, asked, (), WHO)
    if number == runs - 1:
        for site, key in keys.items():
            decision = Decision(asked.digest, Standing.APPROVED, WHO, "", datetime.now(UTC).isoformat())
            decide(store, site, name, decision, sign(key, decision.text()))
        move(store, [name], State.RUNNING, WHO, "", name)
    elif number < runs - 1 - WAITING:
        reject(store, name, WHO, "measured, not carried out")


def _cut(run: Path) -> None:
    """Leave of a run what there is in the middle of its unlearning."""
    (run / "metrics.json").unlink()
    (run / LOCK).unlink()  # nobody carries it out here
    (run / "report.html").unlink()
    lines = (run / EVENTS).read_text().splitlines(keepends=True)
    rounds = [number for number, line in enumerate(lines) if json.loads(line)["event"] == "unlearned_round"]
    (run / EVENTS).write_text("".join(lines[: rounds[len(rounds) // 2] + 1]))


def rounds_of(run: Path) -> Sequence[dict[str, Any]]:
    """What a run told of its rounds of unlearning so far."""
    events = (json.loads(line) for line in (run / EVENTS).read_text().splitlines())
    return [event for event in events if event["event"] == "unlearned_round"]
