"""The real thing on loopback: SuperLink, TLS, node keys, a site that is up, an unlearning, and every byte that leaves.

One site: each of its answers is a process that starts anew. Two are in test_coordinator.py.
"""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tomli_w

from excise.client.config import read_site_config
from excise.client.deploy.supervisor import node_status
from excise.client.requests import Requests
from excise.client.setup import make_node_key
from excise.client.site import open_site
from excise.common.bundle import FOLDER, bundle_digest
from excise.common.chain import faults
from excise.common.decision import Standing
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind, joined
from excise.common.settings import LocalSettings, RoundSettings, UnlearningSettings
from excise.common.signing import make_key
from excise.common.weights import load_weights, save_weights, snapshot
from excise.server.plan import Plan
from tests.deployment import Deployment, deployment, eventually
from tests.dicoms import write_hospital, write_site_toml
from tests.recorder import Recorder, recorder

SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
WITHDRAWN = ForgetRequest(
    id="withdrawn", kind=RequestKind.PATIENTS, where="PatientID in @CANARY-LIST", reason="consent withdrawn"
)
PARTS = (DEVICE, WITHDRAWN)
REQUEST = joined(PARTS)
CANARIES = {
    "PatientID": "CANARY-PATIENT-",
    "PatientName": "CANARY^JANE",
    "AccessionNumber": "CANARY-ACC-7391",
    "StudyDate": "19031207",
    "StudyDescription": "CANARY STUDY",
    "InstitutionName": "CANARY CLINIC",
}
"""What is planted in every file; of the numbers of patients the part that they share."""
ROOT_UID = "1.2.826.0.1.739173."
"""Before the UID of every image: long enough not to occur by chance, in base64 neither."""
PLACE = "CANARY-FOLDER"
CLASS, NOTE = "CANARY-CLASS", "CANARY-NOTE"
"""In the table of labels."""
PIXELS = bytes(range(0x81, 0xA1))
"""A row of each image, 16 bits a pixel."""


def write_canaries(folder: Path) -> None:
    """Plant the canaries in the images of a hospital, and in a list of patients beside it."""
    for path in sorted((folder / "images").iterdir()):
        dataset = pydicom.dcmread(path)
        for keyword, value in CANARIES.items():
            if keyword != "PatientID":
                setattr(dataset, keyword, value)
        dataset.SOPInstanceUID = f"{ROOT_UID}{dataset.SOPInstanceUID}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PixelData = PIXELS + dataset.PixelData[len(PIXELS) :]
        path.unlink()
        (folder / "images" / PLACE).mkdir(exist_ok=True)
        dataset.save_as(folder / "images" / PLACE / f"{PLACE}-{path.name}", enforce_file_format=True)
    lines = (folder / "labels.csv").read_text().replace("\n1.2.3.", f"\n{ROOT_UID}1.2.3.").splitlines()
    lines[1] = f"{lines[1].partition(',')[0]},{CLASS}"  # a class that the site does not have
    noted = [f"{line},{NOTE if i else 'note'}" for i, line in enumerate(lines)]
    (folder / "labels.csv").write_text("\n".join(noted) + "\n")
    (folder / "lists").mkdir()
    (folder / "lists" / "CANARY-LIST.txt").write_text("".join(f"CANARY-PATIENT-{n}\n" for n in (1, 4, 7, 10, 13)))


def site_in(folder: Path, made: Deployment, port: int) -> Path:
    """A site that is ready to be up, and known to the SuperLink."""
    write_hospital(folder, prefix=CANARIES["PatientID"])
    write_canaries(folder)
    site = write_site_toml(
        folder,
        name="st-joan",
        data={"labels": "labels.csv"},
        split={"key": "a secret of st-joan's own"},
        coordinator={"address": f"localhost:{port}", "api": "localhost:1", "key": "00" * 32, "ca": str(made.ca)},
        policy={"min_count": 2, "bundles": [bundle_digest()], "approval": True, "training": False, "exact_counts": False},
    )
    make_key(folder / "keys" / "signing.pem")
    make_node_key(folder / "keys" / "node")
    open_site(site)
    return site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("deployment")) as running:
        yield running


@pytest.fixture(scope="module")
def recorded(made: Deployment) -> Iterator[Recorder]:
    with recorder(made.ca, made.ca.with_name("server.key"), made.port) as running:
        yield running


@pytest.fixture(scope="module")
def site(made: Deployment, recorded: Recorder) -> Path:
    """The site.toml of a site that is up behind the recorder."""
    ready = site_in(made.folder / "st-joan", made, recorded.port)
    made.register(ready)
    made.up(ready)
    eventually(lambda: made.nodes() == 1, 60, "the site does not connect")
    return ready


def plan_in(folder: Path, deadline: float = 60) -> Path:
    folder.mkdir()
    save_weights(snapshot(build_model(SPEC)), folder / "deployed.safetensors")
    plan = Plan(
        sites=1,
        model=SPEC,
        deployed=folder / "deployed.safetensors",
        retrain=False,
        request=REQUEST,
        parts=PARTS,
        unlearning=UnlearningSettings(local=LocalSettings(rounds=1, steps=3)),
        rounds=RoundSettings(watch=False, deadline=deadline),
    )
    (folder / "plan.toml").write_text(tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)))
    return folder


def test_nothing_is_done_before_the_site_approves(made: Deployment, site: Path) -> None:
    folder = plan_in(made.folder / "early")
    made.run(folder)
    assert not (folder / "model.safetensors").exists()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    told = [(event["round"], event["code"]) for event in events if event["event"] == "refused"]
    assert told == [("status", "not_approved")]
    log = (site.parent / "state" / "node" / "rounds.jsonl").read_text()
    assert {json.loads(line)["code"] for line in log.splitlines()} == {"not_approved"}
    assert Requests(site.parent).standing(REQUEST) == Standing.PENDING


@pytest.fixture(scope="module")
def unlearned(made: Deployment, site: Path) -> Path:
    """The folder of a run that was carried out."""
    kept = Requests(site.parent)
    kept.arrive(REQUEST, PARTS)
    for part in PARTS:
        kept.decide(part, Standing.APPROVED, "Dr. Noether", "")
    folder = plan_in(made.folder / "run")
    made.run(folder)
    return folder


def test_a_model_is_unlearned_through_the_real_thing(unlearned: Path, site: Path) -> None:
    revised, deployed = load_weights(unlearned / "model.safetensors"), load_weights(unlearned / "deployed.safetensors")
    assert any(not revised[name].equal(deployed[name]) for name in deployed)
    metrics = json.loads((unlearned / "metrics.json").read_text())
    counts = metrics["sites"]["st-joan"]
    assert min(counts["forget"], counts["retain"]) > 0
    assert all(count % 2 == 0 for count in counts.values())  # rounded up to min_count
    assert faults(site.parent / "audit.jsonl") == []


def encodings(canary: bytes) -> Iterator[bytes]:
    """A canary as it might be written: as it is, in UTF-16, hexadecimal and base64 at each of its three offsets."""
    yield canary
    text = canary.decode("latin-1")
    yield from (text.encode("utf-16-le"), text.encode("utf-16-be"))
    yield from (canary.hex().encode(), canary.hex().upper().encode())
    for offset in range(3):
        inside = base64.b64encode(bytes(offset) + canary)
        yield inside[4:-4] if offset else inside[:-4]


def test_no_canary_leaves_a_site_in_any_encoding(unlearned: Path, recorded: Recorder, site: Path) -> None:
    sent = bytes(recorded.sent)
    revised = load_weights(unlearned / "model.safetensors")
    assert len(sent) > sum(x.numel() * 4 for x in revised.values())
    assert b"st-joan" in sent  # the recorder sees what is said: nothing was encrypted or compressed
    assert b"crossing_rate" in sent
    assert b"part1_accuracy" in sent
    held = open_site(site)
    prepared = [held.x[:][i].numpy().tobytes()[64:96] for i in (0, 7)]
    uids = [row.item for row in held.scan.rows[:3]]
    canaries = [value.encode() for value in (*CANARIES.values(), PLACE, CLASS, NOTE, "CANARY-LIST", *uids)]
    for canary in [*canaries, PIXELS, *prepared, held.folder.as_posix().encode()]:
        for encoded in encodings(canary):
            if len(encoded) >= 8:  # fewer occur by chance
                assert encoded not in sent, f"{canary!r} leaves as {encoded!r}"
    assert all(np.frombuffer(part, "<f4").any() for part in prepared)


def test_a_bundle_that_the_site_does_not_allow_is_not_run(made: Deployment, site: Path, unlearned: Path) -> None:
    foreign = made.folder / "foreign-bundle"
    foreign.mkdir()
    text = (FOLDER / "pyproject.toml").read_text()
    (foreign / "pyproject.toml").write_text(text.replace("The rounds of excise", "Something else"))
    folder = plan_in(made.folder / "foreign", deadline=20)
    made.run(folder, foreign)
    assert not (folder / "model.safetensors").exists()
    log = (site.parent / "state" / "node" / "log").read_text()
    met = {line for line in log.splitlines() if line.startswith("bundle ") and bundle_digest() not in line}
    assert len(met) == 1
    assert met.pop().endswith("is refused: it is not in policy.bundles")


def test_a_site_that_is_killed_comes_back(made: Deployment, site: Path, unlearned: Path) -> None:
    config = read_site_config(site)
    told = node_status(config)
    assert told is not None
    assert (told[0].running, told[0].restarts) == (True, 0)
    os.kill(_child(made.sites[site].pid), signal.SIGKILL)

    def again() -> bool:
        now = node_status(config)
        return now is not None and now[0].running and now[0].restarts == 1

    eventually(again, 30, "the node is not started again")


def _child(process: int) -> int:
    """The SuperNode of a supervisor."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command, parent = path.read_bytes(), path.with_name("stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"excise.client.deploy.node" in command and int(parent) == process:
            return int(path.parent.name)
    raise AssertionError(f"process {process} has no node")
