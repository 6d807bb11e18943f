"""Headers and labels: everything usable is found, everything else has its reason, and the scan always goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from excise.client.dicom.index import read_headers, read_labels
from excise.common.errors import DataError
from excise.common.predicate import FIELDS
from tests.dicoms import write_dicom

PIXELS = np.zeros((8, 8), np.uint16)


def test_reads_the_headers_below_a_folder_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write_dicom(tmp_path / "b" / "2.dcm", PIXELS, "1.2", StationName="MR7", StudyDate="20200101")
    write_dicom(tmp_path / "a" / "deep" / "1.dcm", PIXELS, "1.1")
    write_dicom(tmp_path / "c" / "IM0003", PIXELS, "1.3")  # many archives give no ending
    (tmp_path / "DICOMDIR").write_text("a table of contents, not an image")
    (tmp_path / "notes.txt").write_text("not an image")
    headers, problems = read_headers(tmp_path)
    assert [header.path.name for header in headers] == ["1.dcm", "2.dcm", "IM0003"]
    assert [problem.item for problem in problems] == ["notes.txt"]
    assert headers[1].fields["StationName"] == "MR7"
    assert headers[1].fields["StudyDate"] == "20200101"
    assert headers[0].fields["StationName"] is None
    assert set(headers[0].fields) == {name for name in FIELDS if name[0].isupper()}


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
    (header,), _ = read_headers(tmp_path)
    assert header.fields["SoftwareVersions"] == "VB17\\Patch 3"
    assert header.fields["MagneticFieldStrength"] == "1.50"
    assert header.fields["KVP"] is None
    assert header.fields["StationName"] is None
    assert header.fields["InstitutionName"] == "Charité"


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
    headers, problems = read_headers(tmp_path)
    assert [header.path.name for header in headers] == ["b.dcm"]
    assert [(problem.item, problem.reason) for problem in problems] == [("a.dcm", reason)]


def test_a_copy_of_an_image_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_dicom(tmp_path / f"{name}.dcm", PIXELS, "1.7")
    headers, problems = read_headers(tmp_path)
    assert [header.path.name for header in headers] == ["a.dcm"]
    assert [problem.item for problem in problems] == ["b.dcm", "c.dcm"]
    assert all(problem.reason == "SOPInstanceUID occurs already in a.dcm" for problem in problems)


def test_broken_files_become_problems_and_the_scan_goes_on(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "z.dcm", PIXELS, "1.9").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: whole.index(b"MR\0") + 2 if b"MR\0" in whole else 300])
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "text.dcm").write_text("no DICOM at all " * 20)
    (tmp_path / "folder.dcm").mkdir()
    headers, problems = read_headers(tmp_path)
    assert [header.path.name for header in headers] == ["z.dcm"]
    assert {problem.item for problem in problems} == {"cut.dcm", "empty.dcm", "text.dcm"}
    assert all(problem.reason for problem in problems)


@pytest.mark.parametrize("cut", range(130, 420, 17))
def test_a_header_cut_anywhere_never_raises(tmp_path: Path, cut: int) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    path.write_bytes(path.read_bytes()[:cut])
    headers, problems = read_headers(tmp_path)
    assert len(headers) + len(problems) == 1


def test_a_value_that_cannot_be_parsed_becomes_a_problem(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, StationName="MR7")
    station = b"\x08\x00\x10\x10"
    path.write_bytes(path.read_bytes().replace(station + b"SH", station + b"ZZ"))  # no value representation of PS3.5 §6.2
    headers, problems = read_headers(tmp_path)
    assert not headers
    assert "header cannot be read" in problems[0].reason


def test_a_number_that_is_no_number_is_kept_as_text(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, MagneticFieldStrength="123456")
    path.write_bytes(path.read_bytes().replace(b"123456", b"ab-cde"))
    (header,), _ = read_headers(tmp_path)
    assert header.fields["MagneticFieldStrength"] == "ab-cde"


def test_an_empty_folder_has_nothing_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert read_headers(tmp_path) == ([], [])
    with pytest.raises(DataError, match="no DICOM folder at"):
        read_headers(tmp_path / "none")


def _labels(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_labels(tmp_path: Path, mark: str, end: str) -> None:
    path = _labels(tmp_path, mark + end.join(["uid,label,note", '1.2,ill,"a, b"', "", "1.3,clear,"]))
    assert read_labels(path, "uid") == {
        "1.2": {"uid": "1.2", "label": "ill", "note": "a, b"},
        "1.3": {"uid": "1.3", "label": "clear", "note": ""},
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("uid,class\n1,a\n", r"lacks the column label; it has \['uid', 'class'\]"),
        ("", "lacks the column label, uid"),
        ("uid,label\n1,a\n2,b\n1,b\n", "names one uid twice, in line 4"),
        ("uid,label\n1,a\n2\n", "too few or too many values in line 3"),
        ("uid,label\n1,a,b\n", "too few or too many values in line 2"),
        (b"uid,label\n1,\xff\xfe\n", "no readable labels"),
        ("uid,label\n1," + "x" * 200_000, "no readable labels"),
    ],
)
def test_labels_that_cannot_be_used_say_why(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_labels(_labels(tmp_path, text), "uid")


def test_labels_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable labels at"):
        read_labels(tmp_path / "none.csv", "uid")
    with pytest.raises(DataError, match="no readable labels at"):
        read_labels(tmp_path, "uid")
