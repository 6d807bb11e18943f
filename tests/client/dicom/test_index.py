"""The index: everything usable is found, everything else has its reason, and the scan always goes on."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest

from excise.client.dicom import folder as dicom_folder
from excise.client.dicom import index
from excise.client.dicom.folder import Folder
from excise.client.dicom.headers import Header, read_header
from excise.client.dicom.index import CHANGED, Index, Scanned
from excise.client.dicom.place import File
from excise.client.table import Problem
from excise.common.errors import DataError, StorageError
from excise.common.predicate import FIELDS
from tests.dicoms import write_dicom

PIXELS = np.zeros((8, 8), np.uint16)


def index_of(folder: Path) -> Index:
    return Index(folder.parent / f"{folder.name}.sqlite", Folder(folder))


def scanned(folder: Path) -> tuple[list[tuple[Path, str, Header]], list[Problem]]:
    """What a scan finds."""
    found = index_of(folder)
    found.scan(workers=0)
    return list(found.headers()), found.problems()


def test_reads_the_headers_below_a_folder_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write_dicom(tmp_path / "b" / "2.dcm", PIXELS, "1.2", StationName="MR7", StudyDate="20200101")
    write_dicom(tmp_path / "a" / "deep" / "1.dcm", PIXELS, "1.1")
    write_dicom(tmp_path / "c" / "IM0003", PIXELS, "1.3")  # many archives give no ending
    (tmp_path / "DICOMDIR").write_text("a table of contents, not an image")
    (tmp_path / "notes.txt").write_text("not an image")
    write_dicom(tmp_path / ".snapshot" / "1.dcm", PIXELS, "1.1")
    (tmp_path / ".hidden").write_text("not an image")
    headers, problems = scanned(tmp_path)
    assert [Path(os.fsdecode(path)).name for path, _, _ in headers] == ["1.dcm", "2.dcm", "IM0003"]
    assert [problem.item for problem in problems] == ["notes.txt"]
    assert headers[1][2]["StationName"] == "MR7"
    assert headers[1][2]["StudyDate"] == "20200101"
    assert headers[0][2]["StationName"] is None
    assert set(headers[0][2]) == {name for name in FIELDS if name[0].isupper()}


def test_values_are_read_as_text(tmp_path: Path) -> None:
    write_dicom(
        tmp_path / "a.dcm",
        PIXELS,
        SoftwareVersions=["VB17", "Patch 3"],
        MagneticFieldStrength="1.50",
        KVP="",
        StationName=" ",
        SpecificCharacterSet="ISO_IR 192",
        InstitutionName="Charité",
    )
    ((_, _, header),), _ = scanned(tmp_path)
    assert header["SoftwareVersions"] == "VB17\\Patch 3"
    assert header["MagneticFieldStrength"] == "1.5"  # decimal strings have one spelling (PS3.5 6.2)
    assert header["KVP"] is None
    assert header["StationName"] is None
    assert header["InstitutionName"] == "Charité"


@pytest.mark.parametrize(
    ("written", "read"),
    [("1.500000", "1.5"), ("3.0E0 ", "3"), ("-0.25", "-0.25"), ("120", "120"), ("about 3", "about 3"), ("1\\2.50", "1\\2.5")],
)
def test_a_decimal_string_has_one_spelling(tmp_path: Path, written: str, read: str) -> None:
    values = written.split("\\")
    write_dicom(tmp_path / "a.dcm", PIXELS, "1.1", MagneticFieldStrength="0", SoftwareVersions="1.500000")
    content = pydicom.dcmread(tmp_path / "a.dcm")
    content["MagneticFieldStrength"]._value = values if len(values) > 1 else written  # pydicom would write it anew
    content.save_as(tmp_path / "a.dcm")
    ((_, _, header),), _ = scanned(tmp_path)
    assert (header["MagneticFieldStrength"], header["SoftwareVersions"]) == (read, "1.500000")
    assert read_header(tmp_path / "a.dcm") == header.values_


@pytest.mark.parametrize(
    ("uid", "patient", "reason"),
    [("1.2", None, "without PatientID"), ("1.2", "", "without PatientID"), ("", "P", "without SOPInstanceUID")],
)
def test_what_the_split_needs_must_be_there(tmp_path: Path, uid: str, patient: str | None, reason: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, "1.2", patient)
    if not uid:
        path = write_dicom(path, PIXELS, "1.2", patient, SOPInstanceUID="1.999")
        path.write_bytes(path.read_bytes().replace(b"UI\x06\x001.999\0", b"UI\x06\0\0\0\0\0\0\0"))
    write_dicom(tmp_path / "b.dcm", PIXELS, "1.3")
    headers, problems = scanned(tmp_path)
    assert [os.fsdecode(path) for path, _, _ in headers] == ["b.dcm"]
    assert [(problem.item, problem.reason) for problem in problems] == [("a.dcm", reason)]


def test_a_copy_of_an_image_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_dicom(tmp_path / f"{name}.dcm", PIXELS, "1.7")
    headers, problems = scanned(tmp_path)
    assert [os.fsdecode(path) for path, _, _ in headers] == ["a.dcm"]
    assert [problem.item for problem in problems] == ["b.dcm", "c.dcm"]
    assert all(problem.reason == "SOPInstanceUID occurs already in a.dcm" for problem in problems)


def test_broken_files_become_problems_and_the_scan_goes_on(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "z.dcm", PIXELS, "1.9").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: whole.index(b"MR\0") + 2 if b"MR\0" in whole else 300])
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "text.dcm").write_text("no DICOM at all " * 20)
    (tmp_path / "folder.dcm").mkdir()
    headers, problems = scanned(tmp_path)
    assert [os.fsdecode(path) for path, _, _ in headers] == ["z.dcm"]
    assert {problem.item for problem in problems} == {"cut.dcm", "empty.dcm", "text.dcm"}
    assert all(problem.reason for problem in problems)


@pytest.mark.parametrize("cut", range(130, 420, 17))
def test_a_header_cut_anywhere_never_raises(tmp_path: Path, cut: int) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    path.write_bytes(path.read_bytes()[:cut])
    headers, problems = scanned(tmp_path)
    assert len(headers) + len(problems) == 1


def test_a_value_that_cannot_be_parsed_becomes_a_problem(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, StationName="MR7")
    station = b"\x08\x00\x10\x10"
    path.write_bytes(path.read_bytes().replace(station + b"SH", station + b"ZZ"))  # no value representation of PS3.5 §6.2
    headers, problems = scanned(tmp_path)
    assert not headers
    assert "header cannot be read" in problems[0].reason


def test_a_number_that_is_no_number_is_kept_as_text(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, MagneticFieldStrength="123456")
    path.write_bytes(path.read_bytes().replace(b"123456", b"ab-cde"))
    ((_, _, header),), _ = scanned(tmp_path)
    assert header["MagneticFieldStrength"] == "ab-cde"


def test_an_empty_folder_has_nothing_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert scanned(tmp_path) == ([], [])
    with pytest.raises(DataError, match="no DICOM folder at"):
        scanned(tmp_path / "none")


# ---- again ------------------------------------------------------------------------------------------------------------


def test_only_new_and_changed_files_are_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for number, name in enumerate("abc"):
        write_dicom(folder / name, PIXELS, f"1.{number}")
    found = index_of(folder)
    assert not found.whole
    assert found.scan(workers=0) == Scanned(found=3, read=3, gone=0)
    assert found.whole
    assert found.scan(workers=0) == Scanned(found=3, read=0, gone=0)
    write_dicom(folder / "b", PIXELS, "1.1", StationName="MR7")
    os.utime(folder / "b", ns=(1, 1))
    (folder / "c").unlink()
    write_dicom(folder / "d", PIXELS, "1.4")
    assert Index(found.database, Folder(folder)).scan(workers=0) == Scanned(found=3, read=2, gone=1)
    assert {path: header["StationName"] for path, _, header in found.headers()} == {b"a": None, b"b": "MR7", b"d": None}


def test_a_scan_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    for i in range(7):
        write_dicom(folder / f"{i}", PIXELS, f"1.{i}")
    monkeypatch.setattr(index, "BATCH", 3)
    found = index_of(folder)

    def killed(_: int, read: int) -> None:
        if read >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.scan(killed, workers=0)
    assert not found.whole
    assert found.scan(workers=0) == Scanned(found=7, read=4, gone=0)
    assert len(list(found.headers())) == 7


def test_several_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    for i in range(9):
        write_dicom(folder / f"{i}", PIXELS, f"1.{i}")
    (folder / "broken").write_bytes(b"broken")
    monkeypatch.setattr(index, "BATCH", 2)
    alone, together = Index(tmp_path / "alone.sqlite", Folder(folder)), Index(tmp_path / "together.sqlite", Folder(folder))
    told: list[tuple[int, int]] = []
    assert alone.scan(workers=0) == together.scan(lambda *done: told.append(done), workers=2)
    assert told[-1] == (10, 10)
    assert [dict(header) for _, _, header in alone.headers()] == [dict(header) for _, _, header in together.headers()]
    assert alone.problems() == together.problems() == [Problem("broken", "not a DICOM file")]


def test_a_file_that_ends_its_reader_is_left_out_and_the_scan_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fatal(_: Path, files: list[File]) -> list[index.Values | str]:  # in here, or every reader would import this module
        if any(file.path.endswith(b"fatal") for file in files):
            os._exit(1)
        return ["read" for _ in files]

    for name in ("a", "b", "c.fatal", "d", "e", "f", "g"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_text(name)
    monkeypatch.setattr(index, "BATCH", 2)
    monkeypatch.setattr(dicom_folder, "_read", fatal)
    found = index_of(tmp_path / "images")
    assert found.scan(workers=1) == Scanned(found=7, read=7, gone=0)
    reasons = {problem.item: problem.reason for problem in found.problems()}
    assert reasons == dict.fromkeys("abdefg", "read") | {"c.fatal": index.FATAL}


def test_two_scans_at_once_find_what_one_finds(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for i in range(12):
        write_dicom(folder / f"{i}", PIXELS, f"1.{i}")
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: index_of(folder).scan(workers=0), range(3)))
    assert sorted(one.read for one in done) == [0, 0, 12]
    assert len(list(index_of(folder).headers())) == 12


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    write_dicom(folder / "a", PIXELS, "1.1")
    found = index_of(folder)
    read = dicom_folder.read_headers
    monkeypatch.setattr(
        dicom_folder, "read_headers", lambda paths: (write_dicom(folder / "a", PIXELS[:4], "1.2"), read(paths))[1]
    )
    found.scan(workers=0)
    assert found.problems() == [Problem("a", CHANGED)]
    monkeypatch.setattr(dicom_folder, "read_headers", read)
    assert found.scan(workers=0) == Scanned(found=1, read=1, gone=0)
    assert [header["SOPInstanceUID"] for _, _, header in found.headers()] == ["1.2"]


def test_names_need_not_be_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "im ages.of é"
    name = os.fsdecode(b"caf\xe9 . dcm")
    write_dicom(folder / name, PIXELS, "1.1")
    (folder / os.fsdecode(b"\xff")).write_text("no image")
    headers, problems = scanned(folder)
    assert [os.fsdecode(path) for path, _, _ in headers] == [name]
    assert [problem.item for problem in problems] == ["\\udcff"]
    str(problems).encode()  # can be printed


def test_a_folder_that_is_not_mounted_takes_nothing_away(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    path = write_dicom(folder / "a", PIXELS, "1.1")
    found = index_of(folder)
    found.scan(workers=0)
    path.unlink()
    with pytest.raises(DataError, match="where 1 were: is it mounted"):
        found.scan(workers=0)
    assert len(list(found.headers())) == 1


def test_what_may_pass_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    write_dicom(folder / "a", PIXELS, "1.1")
    found = index_of(folder)
    with monkeypatch.context() as patched:
        patched.setattr(dicom_folder, "read_headers", lambda paths: [f"{index.UNREADABLE}: Permission denied"] * len(paths))
        found.scan(workers=0)
    assert found.problems() == [Problem("a", "file cannot be read: Permission denied")]
    assert found.scan(workers=0) == Scanned(found=1, read=1, gone=0)
    assert found.problems() == []


def test_links_that_lead_nowhere_or_round_do_not_stop_a_scan(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_dicom(folder / "a", PIXELS, "1.1")
    (folder / "nowhere").symlink_to(tmp_path / "none")
    (folder / "round").symlink_to(folder)
    headers, problems = scanned(folder)
    assert [os.fsdecode(path) for path, _, _ in headers] == ["a"]
    assert problems == [Problem("nowhere", "file cannot be read: No such file or directory")]


def test_a_folder_without_permission_becomes_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    write_dicom(folder / "a", PIXELS, "1.1")
    (folder / "closed").mkdir()
    scandir = os.scandir  # as root, who runs the tests here and there, every folder is open

    def refusing(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    headers, problems = scanned(folder)
    assert len(headers) == 1
    assert problems == [Problem("closed", "folder cannot be read: Permission denied")]


def test_an_index_of_another_folder_or_of_other_keywords_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_dicom(tmp_path / name / name, PIXELS, "1.1")
    found = Index(tmp_path / "index.sqlite", Folder(tmp_path / "one"))
    found.scan(workers=0)
    again = Index(tmp_path / "index.sqlite", Folder(tmp_path / "two"))
    assert not again.whole
    assert list(again.headers()) == []
    again.scan(workers=0)
    monkeypatch.setattr(index, "KEYWORDS", (*index.KEYWORDS, "PatientAge"))
    assert not Index(tmp_path / "index.sqlite", Folder(tmp_path / "two")).whole


def test_a_damaged_index_says_so(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"no database at all " * 100)
    with pytest.raises(DataError, match=r"is damaged .*: delete it"):
        Index(tmp_path / "index.sqlite", Folder(tmp_path))


def test_a_full_disk_is_told_and_what_was_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    for i in range(4):
        write_dicom(folder / f"{i}", PIXELS, f"1.{i}")
    monkeypatch.setattr(index, "BATCH", 2)
    put, kept = index._put, 0

    def full(*arguments: object) -> None:
        nonlocal kept
        kept += 1
        if kept > 2:
            raise sqlite3.OperationalError("database or disk is full")
        put(*arguments)  # type: ignore[arg-type]

    found = index_of(folder)
    monkeypatch.setattr(index, "_put", full)
    with pytest.raises(StorageError, match="disk is full"):
        found.scan(workers=0)
    monkeypatch.setattr(index, "_put", put)
    assert found.scan(workers=0) == Scanned(found=4, read=2, gone=0)
