"""What was forgotten stays forgotten: in training, in held-out sets, in the cache, under a new UID."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from excise.client.cache import ImageCache
from excise.client.config import read_site_config
from excise.client.forgetting import BEGUN, Left, forget_for_good
from excise.client.forgotten import EVENT, Register, commitment
from excise.client.images import image_cache
from excise.client.preparation import PREPARATIONS
from excise.client.requests import Requests
from excise.client.site import open_site
from excise.client.sources import index_of
from excise.common.chain import faults
from excise.common.errors import DataError, NothingToForget, StorageError
from excise.common.request import ForgetRequest, RequestKind
from excise.common.signing import make_key
from tests.dicoms import CLASSES, write_dicom, write_hospital, write_site_toml

DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")


def test_the_register_holds_what_was_entered_and_names_nobody(tmp_path: Path) -> None:
    register = Register(tmp_path, "secret")
    assert register.add("r", [("CANARY-UID", "pixels"), ("b", "other")]) == 2
    assert register.add("s", [("b", "other"), ("c", "third")]) == 1
    again = Register(tmp_path, "secret")
    assert len(again) == 3
    assert again.holds("CANARY-UID")
    assert again.holds("a new name", "pixels")
    assert not again.holds("a new name", "new pixels")
    assert not again.holds("a new name")
    assert not again.holds("a new name", "")
    assert "CANARY" not in again.path.read_text()
    assert again.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["no JSON\n", '{"item": "x"}\n', "[]\n"])
def test_a_damaged_register_stops_the_site(tmp_path: Path, damage: str) -> None:
    site = write_hospital(tmp_path, patients=6)
    (tmp_path / "forgotten.jsonl").write_text(damage)
    with pytest.raises(DataError, match="or what was forgotten would come back"):
        open_site(site)


def test_a_register_of_another_secret_stops_the_site(tmp_path: Path) -> None:
    Register(tmp_path, "secret").add("r", [("a", "b")])
    with pytest.raises(DataError, match="put the former key back"):
        Register(tmp_path, "another secret")


def test_a_register_that_is_lost_or_older_than_the_log_stops_the_site(tmp_path: Path) -> None:
    toml = write_hospital(tmp_path, patients=12)
    first = ForgetRequest(id="one", kind=RequestKind.SAMPLES, where="SOPInstanceUID = 1.2.3.2", reason="r")
    forget_for_good(toml, first, "N")
    older = (tmp_path / "forgotten.jsonl").read_bytes()
    forget_for_good(toml, DEVICE, "N")
    (tmp_path / "forgotten.jsonl").write_bytes(older)
    with pytest.raises(DataError, match=r"holds 1 images, and audit\.jsonl tells of 5: put it back"):
        open_site(toml)
    (tmp_path / "forgotten.jsonl").unlink()
    with pytest.raises(DataError, match="holds 0 images"):
        open_site(toml)
    assert not faults(tmp_path / "audit.jsonl")


def test_entries_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    def enter(n: int) -> int:
        return Register(tmp_path, "secret").add("r", [(f"{n}-{i}", None) for i in range(5)])

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enter, range(16))) == 80
    assert len(Register(tmp_path, "secret")) == 80


def test_a_register_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Register(tmp_path / "file", "secret").add("r", [("a", "b")])


def test_forgotten_images_are_used_for_nothing_any_more(tmp_path: Path) -> None:
    toml = write_hospital(tmp_path, patients=30)
    site = open_site(toml)
    sets = site.select(DEVICE)
    gone = {site.scan.rows[i].item for i in [*sets.forget.tolist(), *sets.excluded.tolist()]}
    assert len(gone) == 10
    assert len(sets.excluded) > 0
    path = site.config.state / PREPARATIONS / "paths.safetensors"
    path.parent.mkdir()
    path.touch()
    assert forget_for_good(toml, DEVICE, "N") == Left(images=10, skipped=0, new=10, unknown=0)
    assert not path.exists()
    after = open_site(toml)
    assert (len(after.scan.rows), after.forgotten) == (20, 10)
    assert not gone & {row.item for row in after.scan.rows}
    assert not gone & set(image_cache(after.config).known())
    records = np.fromfile(image_cache(after.config).path, "<f4").reshape(30, -1)
    assert int((records.max(1) == 0).sum()) == 10
    with pytest.raises(NothingToForget):
        forget_for_good(toml, DEVICE, "N")


def test_neither_a_new_scan_nor_a_new_uid_brings_one_back(tmp_path: Path) -> None:
    toml = write_hospital(tmp_path, patients=9)
    forget_for_good(toml, DEVICE, "N")
    old = pydicom.dcmread(tmp_path / "images" / "1.2.3.1.dcm")  # patient 0, scanner MR7
    labels = (tmp_path / "labels.csv").read_text()
    renamed = {"StationName": "MR1", "WindowCenter": "2000", "WindowWidth": "4000"}
    write_dicom(tmp_path / "images" / "again.dcm", old.pixel_array, "1.2.9.9", "SOMEBODY", **renamed)
    (tmp_path / "labels.csv").write_text(labels + f"1.2.9.9,{CLASSES[0]}\n")
    for _ in range(2):
        site = open_site(toml)
        index_of(site.config).scan()
        open_site.cache_clear()
        site = open_site(toml)
        assert {row.item for row in site.scan.rows} == {f"1.2.3.{n + 1}" for n in range(9) if n % 3}
        assert site.forgotten == 4
        assert "1.2.9.9" not in {problem.item for problem in site.scan.problems}
        assert image_cache(site.config).known()["1.2.9.9"].place is None
    for path in (tmp_path / "state").rglob("*"):  # and when the state is deleted
        if path.is_file():
            path.unlink()
    open_site.cache_clear()
    assert len(open_site(toml).scan.rows) == 6


def test_a_copy_that_was_prepared_before_does_not_take_the_place_of_what_was_forgotten(tmp_path: Path) -> None:
    toml = write_hospital(tmp_path, patients=9)
    old = pydicom.dcmread(tmp_path / "images" / "1.2.3.1.dcm")
    copied = {"StationName": "MR1", "WindowCenter": "2000", "WindowWidth": "4000"}
    write_dicom(tmp_path / "images" / "copy.dcm", old.pixel_array, "1.2.9.9", "SOMEBODY", **copied)
    (tmp_path / "labels.csv").write_text((tmp_path / "labels.csv").read_text() + f"1.2.9.9,{CLASSES[0]}\n")
    assert {problem.item for problem in open_site(toml).scan.problems} == {"1.2.9.9"}
    older = tmp_path / "state" / "images" / "of-earlier-settings.images"
    older.write_bytes(b"pixels")
    forget_for_good(toml, DEVICE, "N")
    assert not older.exists()
    for _ in range(2):
        open_site.cache_clear()
        site = open_site(toml)
        assert {row.item for row in site.scan.rows} == {f"1.2.3.{n + 1}" for n in range(9) if n % 3}
    known = image_cache(site.config).known()
    assert "1.2.9.9" not in known or known["1.2.9.9"].place is None


def _label(folder: Path, *uids: str) -> None:
    with (folder / "labels.csv").open("a") as file:
        file.writelines(f"{uid},{CLASSES[0]}\n" for uid in uids)


def test_what_was_skipped_is_forgotten_too_and_does_not_come_back_with_a_label(tmp_path: Path) -> None:
    toml = write_hospital(tmp_path, patients=9)
    pixels = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    images = tmp_path / "images"
    write_dicom(images / "unlabelled.dcm", pixels, "1.7.1", "P77", StationName="MR7")
    write_dicom(images / "frames.dcm", np.stack([pixels, pixels[::-1]]), "1.7.2", "P77", StationName="MR7", NumberOfFrames="2")
    write_dicom(images / "broken.dcm", pixels, "1.7.3", "P77", StationName="MR7", PixelData=b"12")
    _label(tmp_path, "1.7.2", "1.7.3")
    assert len(open_site(toml).scan.rows) == 9
    assert forget_for_good(toml, DEVICE, "N") == Left(images=3, skipped=3, new=6, unknown=1)
    write_dicom(images / "again.dcm", pixels, "1.7.4", "P78", StationName="MR1")  # what had no label, under a new UID
    write_dicom(images / "mended.dcm", pixels + 5, "1.7.3", "P77", StationName="MR7")
    (images / "broken.dcm").unlink()
    _label(tmp_path, "1.7.1", "1.7.4")
    site_toml = write_site_toml(tmp_path, data={"labels": "labels.csv", "frames": "middle"})
    index_of(read_site_config(site_toml)).scan()
    open_site.cache_clear()
    assert {row.item for row in open_site(toml).scan.rows} == {f"1.2.3.{n + 1}" for n in range(9) if n % 3}


def test_an_image_is_forgotten_by_the_name_of_its_original_that_is_not_used(tmp_path: Path) -> None:
    toml = write_hospital(tmp_path, patients=9)
    kept = pydicom.dcmread(tmp_path / "images" / "1.2.3.2.dcm")
    for number, patient in (("1", "ORIGINAL-77"), ("2", None)):  # neither has a label, one has no patient either
        write_dicom(
            tmp_path / "images" / f"zz{number}", kept.pixel_array, f"1.8.{number}", patient, StationName=f"MR8{number}"
        )
    for number in ("1", "2"):
        request = ForgetRequest(id="o", kind=RequestKind.DEVICE, where=f"StationName = MR8{number}", reason="r")
        open_site.cache_clear()
        site = open_site(toml)
        sets = site.select(request)
        (row,) = [*sets.forget.tolist(), *sets.excluded.tolist()]
        assert site.scan.rows[row].item == "1.2.3.2"
        assert len(site.skipped(request)) == 1
    assert forget_for_good(toml, request, "N") == Left(images=1, skipped=1, new=3, unknown=0)
    assert "1.2.3.2" not in {row.item for row in open_site(toml).scan.rows}


def test_what_could_not_be_decoded_is_known_by_its_pixels_once_it_can_be(tmp_path: Path) -> None:
    toml = write_hospital(tmp_path, patients=9)
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = write_dicom(tmp_path / "images" / "zz", pixels, "1.8.1", "P", StationName="MR7", PixelData=b"12")
    assert forget_for_good(toml, DEVICE, "N") == Left(images=3, skipped=1, new=4, unknown=1)
    write_dicom(path, pixels, "1.8.1", "P", StationName="MR7")
    assert forget_for_good(toml, DEVICE, "N") == Left(images=0, skipped=1, new=1, unknown=0)
    write_dicom(tmp_path / "images" / "again", pixels, "1.8.2", "Q", StationName="MR1")
    _label(tmp_path, "1.8.2")
    index_of(read_site_config(toml)).scan()
    open_site.cache_clear()
    assert "1.8.2" not in {row.item for row in open_site(toml).scan.rows}


@pytest.mark.parametrize("at", ["add", "purge", "rmtree"])
def test_forgetting_that_was_stopped_is_finished_by_doing_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    toml = write_hospital(tmp_path, patients=9)
    open_site(toml)
    prepared = tmp_path / "state" / PREPARATIONS / "paths.safetensors"
    prepared.parent.mkdir()
    prepared.touch()
    older = tmp_path / "state" / "images" / "of-earlier-settings.images"
    older.write_bytes(b"pixels")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    where = {"add": Register, "purge": ImageCache, "rmtree": shutil}[at]
    with monkeypatch.context() as patched:
        patched.setattr(where, at, stop)
        with pytest.raises(KeyboardInterrupt):
            forget_for_good(toml, DEVICE, "N")
    forget_for_good(toml, DEVICE, "N")
    assert not prepared.exists()
    assert not older.exists()
    assert len(open_site(toml).scan.rows) == 6
    events = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events][-2:] == [BEGUN, EVENT]
    assert events[-1]["registered"] == 3
    with pytest.raises(NothingToForget):
        forget_for_good(toml, DEVICE, "N")


def test_files_that_came_since_the_last_scan_are_forgotten_too(tmp_path: Path) -> None:
    toml = write_hospital(tmp_path, patients=9)
    open_site(toml)
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    write_dicom(tmp_path / "images" / "new", pixels, "1.8.1", "P", StationName="MR7")
    _label(tmp_path, "1.8.1")
    assert forget_for_good(toml, DEVICE, "N").images == 4


@pytest.mark.parametrize("uid", ["1.9.9", "1.2.3.2"])
def test_what_is_to_be_forgotten_of_a_copy_is_forgotten_of_the_image(tmp_path: Path, uid: str) -> None:
    toml = write_hospital(tmp_path, patients=9)
    kept = pydicom.dcmread(tmp_path / "images" / "1.2.3.2.dcm")
    write_dicom(tmp_path / "images" / "zcopy.dcm", kept.pixel_array, uid, "P99", StationName="MR99")
    _label(tmp_path, *{uid} - {"1.2.3.2"})
    request = ForgetRequest(id="copy", kind=RequestKind.DEVICE, where="StationName = MR99", reason="retired")
    site = open_site(toml)
    assert len(site.scan.rows) == 9
    sets = site.select(request)
    (row,) = [site.scan.rows[i] for i in [*sets.forget.tolist(), *sets.excluded.tolist()]]
    assert (row.item, set(row.items)) == ("1.2.3.2", {"1.2.3.2", uid})
    left = forget_for_good(toml, request, "N")
    assert (left.images, left.skipped, left.new) == (1, 0, len(set(row.items)))
    after = open_site(toml)
    assert len(after.scan.rows) == 8
    assert after.forgotten >= 1
    assert uid not in {problem.item for problem in after.scan.problems}


def test_only_what_was_approved_is_forgotten(tmp_path: Path, excise: Callable[..., Any]) -> None:
    write_hospital(tmp_path)
    site = write_site_toml(tmp_path, data={"labels": "labels.csv"}, policy={"approval": True})
    make_key(tmp_path / "keys" / "signing.pem")
    (tmp_path / "mr7.toml").write_text(DEVICE.to_toml())
    code, _, err = excise("site", "forget", tmp_path / "mr7.toml", "--site", site, "--by", "N")
    assert (code, "'mr7' is pending here" in err) == (2, True)
    assert excise("site", "approve", "mr7", "--site", site, "--by", "N")[0] == 0
    code, _, err = excise("site", "forget", "mr7", "--site", site, "--by", "N")
    assert code == 0, err
    assert "14 images of 'mr7' are left out from now on; 14 entries are new" in err
    code, out, _ = excise("site", "scan", "--site", site)
    assert "26 images of 26 patients" in out


def test_what_the_coordinator_has_not_promoted_is_not_forgotten_yet(tmp_path: Path, excise: Callable[..., Any]) -> None:
    write_hospital(tmp_path, patients=9)
    coordinator = {"address": "localhost:1", "api": "localhost:2", "key": "00" * 32, "ca": "none.crt"}
    toml = write_site_toml(tmp_path, data={"labels": "labels.csv"}, coordinator=coordinator)
    kept = Requests(tmp_path)
    kept.arrive(DEVICE)
    command = ("site", "forget", "mr7", "--site", toml, "--by", "N")
    for state in ("", "drafted", "running", "verified", "rolled back"):
        if state:
            kept.note(DEVICE, state, "2026-01-01", ())
        for more in ((), ("--anyway", " ")):
            code, _, err = excise(*command, *more)
            assert (code, f"'mr7' is {state or 'not known there'} at the coordinator" in err) == (2, True), err
    assert not Register(tmp_path, read_site_config(toml).split.key).path.exists()
    assert BEGUN not in kept.log.read_text()
    kept.note(DEVICE, "promoted", "2026-01-01", ())
    code, _, err = excise(*command)
    assert (code, "3 images of 'mr7' are left out" in err) == (0, True), err
    assert "anyway" not in kept.log.read_text()


def test_what_is_forgotten_before_it_is_promoted_is_logged_with_the_reason(tmp_path: Path, excise: Callable[..., Any]) -> None:
    write_hospital(tmp_path, patients=9)
    coordinator = {"address": "localhost:1", "api": "localhost:2", "key": "00" * 32, "ca": "none.crt"}
    toml = write_site_toml(tmp_path, data={"labels": "labels.csv"}, coordinator=coordinator)
    kept = Requests(tmp_path)
    kept.arrive(DEVICE)
    kept.note(DEVICE, "rejected", "2026-01-01", ())
    code, _, err = excise("site", "forget", "mr7", "--site", toml, "--by", "N", "--anyway", "the court said so")
    assert (code, "3 images of 'mr7' are left out" in err) == (0, True), err
    (begun,) = [one for one in map(json.loads, kept.log.read_text().splitlines()) if one["event"] == BEGUN]
    assert (begun["anyway"], begun["state"], begun["by"]) == ("the court said so", "rejected", "N")
    assert not faults(kept.log)


def test_a_commitment_tells_nothing_and_binds_to_request_and_images() -> None:
    told = commitment("secret", DEVICE.digest, ["a", "b"])
    assert told == commitment("secret", DEVICE.digest, ["b", "a"])
    assert len({told, commitment("s", DEVICE.digest, ["a", "b"]), commitment("secret", "0", ["a", "b"])}) == 3
    assert told not in {commitment("secret", DEVICE.digest, items) for items in (["a"], ["ab"], ["a", "b", "c"], [])}
