"""`excise site` as a hospital engineer calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.dicoms import CLASSES, write_hospital


def test_scan_tells_what_there_is_and_what_was_skipped(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = write_hospital(tmp_path, patients=12)
    (tmp_path / "images" / "note [1].txt").write_text("no image")
    code, out, err = excise("site", "scan", "--site", site)
    assert code == 0, err
    assert "12 images of 12 patients; 1 skipped" in out
    assert [out.index(word) for word in ("modality", "manufacturer", "model", "year", *CLASSES, "split")]
    assert "skipped 1: not a DICOM file" in err
    code, out, err = excise("site", "scan", "--site", site, "--problems")
    assert "note [1].txt: not a DICOM file" in out


def test_scan_as_json(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = write_hospital(tmp_path, patients=12)
    (tmp_path / "images" / "empty.dcm").touch()
    code, out, err = excise("site", "scan", "--site", site, "--json", "--problems")
    assert code == 0, err
    told = json.loads(out)
    assert told["total"] == {"images": 12, "patients": 12, "skipped": 1}
    assert told["class"] == dict.fromkeys(CLASSES, 6)
    assert sum(told["split"].values()) == 12
    assert told["modality"] == {"MR": 12}
    assert told["problems"] == [{"item": "empty.dcm", "reason": "file is empty"}]


def test_a_site_that_cannot_be_scanned_says_why(tmp_path: Path, excise: Callable[..., Any]) -> None:
    code, _, err = excise("site", "scan", "--site", tmp_path / "none.toml")
    assert code == 2
    assert "no site configuration at" in err
    site = write_hospital(tmp_path, patients=2)
    (tmp_path / "labels.csv").unlink()
    code, _, err = excise("site", "scan", "--site", site)
    assert code == 2
    assert "no readable labels at" in err
