"""`site.toml`: wrong keys are told with the closest right one, paths are the file's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from excise.client.config import read_site_config
from excise.common.errors import ConfigError

GOOD = """
name = "site-1"
[data]
path = "dicom"
labels = "labels.csv"
classes = ["a", "b"]
"""


def _write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "site.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    _write(tmp_path, mark + GOOD)
    monkeypatch.chdir(tmp_path)
    config = read_site_config(Path("site.toml"))
    assert config.data.path == tmp_path / "dicom"
    assert config.data.labels == tmp_path / "labels.csv"
    assert config.state == tmp_path / "state"
    assert (config.data.source, config.data.size, config.policy.min_count) == ("dicom", 32, 10)


def test_absolute_paths_stay(tmp_path: Path) -> None:
    text = 'state = "/var/excise"\n' + GOOD.replace('"dicom"', '"/data/dicom"').replace('labels = "labels.csv"\n', "")
    config = read_site_config(_write(tmp_path, text))
    assert config.data.path == Path("/data/dicom")
    assert config.data.labels is None
    assert config.state == Path("/var/excise")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace("name", "nam"), "unknown key 'nam': did you mean 'name'?"),
        (GOOD.replace("labels =", "lables ="), r"unknown key 'data\.lables': did you mean 'labels'\?"),
        (GOOD + "[split]\nheld_ot = 0.1", r"unknown key 'split\.held_ot': did you mean 'held_out'\?"),
        (GOOD + "[policy]\nxyz = 1", r"unknown key 'policy\.xyz': known: approval"),
        (GOOD.replace('name = "site-1"', ""), "missing key 'name'"),
        (GOOD.replace("path =", "# path ="), "source = 'dicom' needs path"),
        (GOOD.replace("site-1", "Site 1"), "name: .*got 'Site 1'"),
        (GOOD + "size = 8", r"data\.size: .*greater than or equal to 16, got 8"),
        (GOOD + 'source = "dcm"', r"data\.source: .*'dicom'.*got 'dcm'"),
        (GOOD + "channels = 2", r"data\.channels"),
        (GOOD + "[policy]\nmin_count = 0", r"policy\.min_count"),
        (GOOD + "[split]\nreference = nan", r"split\.reference"),
        (GOOD + "[split]\nreference = 0.5\nheld_out = 0.5", "must leave patients to train on"),
        (GOOD + "[split", "is not TOML"),
        (b"name = \xff", "is not TOML"),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_site_config(path)
    assert str(path) in str(caught.value)


def test_every_fault_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_site_config(_write(tmp_path, "nam = 1\n[data]\nclases = []\n"))
    for fault in ("'nam'", "'data.clases'", "'name'", "'data.classes'"):
        assert fault in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no site configuration at .*: No such file"):
        read_site_config(tmp_path / "site.toml")
