"""`excise site` as a hospital engineer calls it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from typer.testing import CliRunner

from excise.cli import app
from excise.client.accountant import Accountant, epsilon
from excise.client.config import read_site_config
from excise.client.policy import UpdatePrivacySettings
from excise.client.setup import init as make_site
from excise.client.setup import make_node_key
from excise.client.site import open_site
from excise.common.errors import ConfigError
from tests.dicoms import CLASSES, write_hospital, write_site_toml


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


# ---- init -----------------------------------------------------------------------------------------------------------------


def test_a_site_is_made_and_can_be_scanned(tmp_path: Path, excise: Callable[..., Any]) -> None:
    write_hospital(tmp_path / "pacs", patients=12)
    given = ["--name", "st-mary", "--path", tmp_path / "pacs" / "images", "--source", "dicom"]
    code, _, err = excise("site", "init", *given, "--labels", tmp_path / "pacs" / "labels.csv", "--folder", "st mary")
    assert code == 0, err
    assert "classes, as your own labels name them: clear, ill" in err
    site = tmp_path / "st mary" / "site.toml"
    keys = site.parent / "keys"
    assert {path.name: path.stat().st_mode & 0o777 for path in (site, *keys.iterdir())} == {
        "site.toml": 0o600,
        "signing.pem": 0o600,
        "node": 0o600,
        "node.pub": 0o600,
    }
    config = read_site_config(site)
    assert (config.name, config.data.classes, config.policy.approval) == ("st-mary", ("clear", "ill"), True)
    assert len(config.split.key) == 32
    code, out, err = excise("site", "scan", "--site", site)
    assert code == 0, err
    assert "12 images of 12 patients" in out
    before = {path: path.read_bytes() for path in keys.iterdir()}
    code, _, err = excise("site", "init", *given, "--labels", tmp_path / "pacs" / "labels.csv", "--folder", "st mary")
    assert (code, "exists already" in err) == (2, True)
    assert before == {path: path.read_bytes() for path in keys.iterdir()}


def test_privacy_of_updates_is_off_in_a_new_site_and_its_lines_can_be_put_in_force(tmp_path: Path) -> None:
    make_site(tmp_path, "st-mary", "npz", "images.npz", None, ["a", "b"])
    site = tmp_path / "site.toml"
    assert read_site_config(site).policy.privacy == UpdatePrivacySettings()
    before, _, after = site.read_text().partition("[policy.privacy]")
    site.write_text(before + "[policy.privacy]" + after.replace("\n# ", "\n", 5))
    assert read_site_config(site).policy.privacy == UpdatePrivacySettings(
        clip=0.15, noise_multiplier=1.0, keep_share=0.1, delta=1e-5, max_epsilon=50
    )


def test_flower_takes_the_nodes_key(tmp_path: Path) -> None:
    make_node_key(tmp_path / "node")
    private = load_ssh_private_key((tmp_path / "node").read_bytes(), password=None)
    public = load_ssh_public_key((tmp_path / "node.pub").read_bytes())
    assert isinstance(private, EllipticCurvePrivateKey)
    assert isinstance(public, EllipticCurvePublicKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key().public_numbers() == public.public_numbers()


def test_what_cannot_be_a_site_writes_nothing(tmp_path: Path, excise: Callable[..., Any]) -> None:
    bad_name = ["--name", "St. Mary's", "--path", "x", "--source", "npz", "--classes", "a,b", "--labels", ""]
    code, _, err = excise("site", "init", *bad_name, "--folder", "a")
    assert (code, "name" in err) == (2, True)
    (tmp_path / "x").touch()
    code, _, err = excise("site", "init", "--name", "m", "--path", "x", "--source", "npz", "--labels", "", "--folder", "a")
    assert (code, "name the classes" in err) == (2, True)
    with pytest.raises(ConfigError, match="classes"):  # what no prompt looks at
        make_site(tmp_path / "a", "m", "csv", "x", None, ["a|b"], multi_label=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_is_wrong_at_a_prompt_is_asked_for_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_hospital(tmp_path / "pacs", patients=2)
    typed = ["St. Mary's", "st-mary", "dicom", "", "pacs/imagse", "pacs/images", "labels.csv", "pacs/labels.csv"]
    done = CliRunner().invoke(app, ["site", "init", "--folder", "site"], input="\n".join(typed) + "\n")
    assert done.exit_code == 0, done.output
    asked = ["'St. Mary's' is no name", "there is no 'images'", "there is no 'pacs/imagse'", "there is no file 'labels.csv'"]
    places = [done.output.index(told) for told in asked]
    assert places == sorted(places)
    assert read_site_config(tmp_path / "site" / "site.toml").name == "st-mary"
    done = CliRunner().invoke(app, ["site", "init", "--folder", "site"], input="m\n")
    assert "exists already" in str(done.exception)
    assert "Name of the site" not in done.output


def test_a_pacs_is_no_folder_in_whatever_order_it_is_told(tmp_path: Path, excise: Callable[..., Any]) -> None:
    given = ["--path", "https://pacs.example/dicom-web", "--source", "dicomweb", "--labels", "", "--classes", "a,b"]
    code, _, err = excise("site", "init", *given, "--name", "m", "--folder", "a")
    assert code == 0, err
    code, _, err = excise("site", "init", "--path", "x", "--source", "dicom", *given[4:], "--name", "m", "--folder", "b")
    assert (code, "there is no 'x'" in err, (tmp_path / "b").exists()) == (2, True, False)


def test_what_is_purged_is_made_again(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = write_hospital(tmp_path, patients=12)
    assert excise("site", "scan", "--site", site)[0] == 0
    assert list((tmp_path / "state" / "images").iterdir())
    code, _, err = excise("site", "cache", "purge", "--site", site)
    assert code == 0, err
    assert "MB deleted" in err
    assert not (tmp_path / "state" / "images").exists()
    code, out, _ = excise("site", "scan", "--site", site)
    assert (code, "12 images" in out) == (0, True)


# ---- killed -------------------------------------------------------------------------------------------------------------


def test_a_scan_that_is_killed_again_and_again_comes_to_its_end(tmp_path: Path) -> None:
    site = write_hospital(tmp_path, patients=120)
    scan = [sys.executable, "-m", "excise.cli", "site", "scan", "--site", str(site), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for attempt in range(4):
        killed = subprocess.Popen(scan, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        with contextlib.suppress(subprocess.TimeoutExpired):
            killed.wait(1.0 + 0.4 * attempt)
        killed.kill()
        killed.wait()
    done = subprocess.run(scan, check=True, capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout)["total"] == {"images": 120, "patients": 120, "skipped": 0}
    opened = open_site(site)
    fresh = open_site(write_hospital(tmp_path / "fresh", patients=120))
    assert torch.equal(opened.x[:], fresh.x[:])


# ---- stats --------------------------------------------------------------------------------------------------------------


def test_stats_tell_what_the_last_scan_found(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = write_hospital(tmp_path, patients=12)
    assert excise("site", "scan", "--site", site)[0] == 0
    (tmp_path / "images" / "1.2.3.1.dcm").unlink()  # what no scan has seen is not told
    code, out, _ = excise("site", "stats", "--site", site)
    assert code == 0
    assert "12 images of 12 patients; 0 skipped" in out
    code, out, _ = excise("site", "stats", "--site", site, "--json")
    told = json.loads(out)
    assert told["total"] == {"images": 12, "patients": 12, "skipped": 0, "forgotten": 0}
    assert told["class"] == {"clear": 6, "ill": 6}


# ---- what left ------------------------------------------------------------------------------------------------------------


def test_status_tells_what_the_updates_that_left_come_to(tmp_path: Path, excise: Callable[..., Any]) -> None:
    privacy = UpdatePrivacySettings(clip=1.0, noise_multiplier=2.0, max_epsilon=30.0)
    site = write_site_toml(tmp_path, policy={"privacy": privacy.model_dump(exclude_none=True)})
    code, out, err = excise("site", "status", "--site", site)
    assert code == 0, err
    assert "Updates that left: 0 without noise, 0 with: ε = 0 at δ = 1e-05, of 30 allowed" in out
    for one in (privacy, privacy, UpdatePrivacySettings()):
        Accountant(tmp_path).count(one)
    told = epsilon({2.0: 2}, 1e-5)
    code, out, err = excise("site", "status", "--site", site)
    assert f"Updates that left: 1 without noise, 2 with: ε = {told:.4g} at δ = 1e-05, of 30 allowed" in out
    code, out, err = excise("site", "status", "--site", site, "--json")
    assert json.loads(out)["updates"] == {"updates": 3, "bare": 1, "epsilon": told, "delta": 1e-5, "max_epsilon": 30.0}


def test_status_of_a_site_without_noise_tells_no_epsilon(tmp_path: Path, excise: Callable[..., Any]) -> None:
    site = write_site_toml(tmp_path)
    Accountant(tmp_path).count(UpdatePrivacySettings())
    code, out, err = excise("site", "status", "--site", site)
    assert code == 0, err
    assert "Updates that left: 1 without noise, 0 with\n" in out
