"""A real PACS on loopback, for tests: Orthanc from Debian, which `make test` installs where it is missing."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.deployment import free_port

ORTHANC, DICOMWEB = Path("/usr/sbin/Orthanc"), Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "excise", "tests only"


@dataclass
class Orthanc:
    """A running Orthanc; `address` is of its own interface, `url` of DICOMweb."""

    address: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"{self.address}/dicom-web"

    def store(self, path: Path) -> str:
        """Store a file; returns Orthanc's own name of it."""
        answer = requests.post(f"{self.address}/instances", path.read_bytes(), auth=(USER, PASSWORD), timeout=20)
        answer.raise_for_status()
        return str(answer.json()["ID"])

    def clear(self) -> None:
        """Delete everything."""
        answer = requests.get(f"{self.address}/instances", auth=(USER, PASSWORD), timeout=20)
        for name in answer.json():
            self.delete(name)

    def delete(self, name: str) -> None:
        """Delete what `store` named."""
        requests.delete(f"{self.address}/instances/{name}", auth=(USER, PASSWORD), timeout=20).raise_for_status()


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Run Orthanc with its files below `folder`."""
    assert ORTHANC.exists(), "Orthanc is missing; make test installs it"
    assert DICOMWEB.exists(), "Orthanc's DICOMweb plug-in is missing; make test installs it"
    folder.mkdir(parents=True)
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [str(DICOMWEB)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log)
    made = Orthanc(f"http://127.0.0.1:{port}", process)
    try:
        for _ in range(200):
            try:
                requests.get(f"{made.address}/system", auth=(USER, PASSWORD), timeout=5).raise_for_status()
                break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        process.wait(20)
