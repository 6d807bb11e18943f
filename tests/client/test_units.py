"""The systemd unit and the compose file: what can be checked where neither can be run."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from excise.client import deploy

FOLDER = Path(deploy.__file__).parent


def test_the_unit_starts_what_exists_as_nobody_special() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names have capitals
    unit.read(FOLDER / "excise-site.service")
    service = unit["Service"]
    assert service["ExecStart"].split()[1:3] == ["site", "up"]
    assert (service["User"], service["NoNewPrivileges"], service["ProtectSystem"]) == ("excise", "true", "strict")
    assert service["ReadWritePaths"] == "/var/lib/excise"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    text = (FOLDER / "excise-site.service").read_text().replace("/opt/excise/bin/excise", "/bin/true")
    (tmp_path / "excise-site.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "excise-site.service"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_container_may_write_nothing_but_its_site() -> None:
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["site"]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["command"][0] == "up"
    mounted = {volume.rsplit(":", 1)[-1] if volume.endswith(":ro") else "rw": volume for volume in service["volumes"]}
    assert mounted["ro"].endswith(":/images:ro")
    assert mounted["rw"] == "./site:/site"
