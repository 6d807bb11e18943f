"""Each kind of source: what is usable becomes a row, what is not becomes a problem with its reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from excise.client.config import DataSettings, SiteConfig
from excise.client.sources import Source, open_source
from excise.common.errors import DataError
from tests.dicoms import CLASSES, write_dicom

GREY = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)


def _open(path: Path, source: str, **data: Any) -> Source:
    settings = DataSettings.model_validate({"source": source, "path": path, "classes": CLASSES, "size": 16} | data)
    state = (path if path.is_dir() else path.parent) / ".state"  # which is not looked into
    return open_source(SiteConfig(name="site-1", data=settings, state=state))


def _reasons(source: Source) -> dict[str, str]:
    return {problem.item: problem.reason for problem in source.scan.problems}


def _picture(path: Path, pixels: Any = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# --- dicom ---------------------------------------------------------------------------------------------------------------


def _dicom(tmp_path: Path, labels: str, multi_label: bool = False, **files: dict[str, Any]) -> Source:
    for name, fields in files.items():
        write_dicom(tmp_path / "dicom" / f"{name}.dcm", GREY.astype(np.uint16), **fields)
    (tmp_path / "labels.csv").write_text(labels)
    return _open(tmp_path / "dicom", "dicom", labels=tmp_path / "labels.csv", multi_label=multi_label)


def test_dicom_joins_images_and_labels(tmp_path: Path) -> None:
    source = _dicom(
        tmp_path,
        "SOPInstanceUID,label\n1.1,ill\n1.2,clear\n1.9,ill\n1.3,unsure\n",
        a={"uid": "1.1", "patient": "P1", "IssuerOfPatientID": "H", "StationName": "MR7"},
        b={"uid": "1.2", "patient": "P2"},
        c={"uid": "1.3"},
        d={"uid": "1.4"},
        e={"uid": "1.5", "patient": ""},
    )
    first, second = source.scan.rows
    assert (first.item, first.patient, first.label) == ("1.1", "P1@H", 1)
    assert (second.item, second.patient, second.label) == ("1.2", "P2@", 0)
    wanted = {"site": "site-1", "class": "ill", "patient": "P1", "PatientID": "P1", "item": "1.1", "StationName": "MR7"}
    assert first.fields.items() >= wanted.items()
    assert _reasons(source) == {
        "e.dcm": "without PatientID",
        "1.4": "image without a label",
        "1.3": "label 'unsure' is none of the classes clear, ill",
        "1.9": "label without an image",
    }
    np.testing.assert_allclose(source.load(0), GREY / 252, atol=1e-6)


def test_dicom_with_several_labels(tmp_path: Path) -> None:
    source = _dicom(
        tmp_path,
        "SOPInstanceUID,label\n1.1,ill\n1.2,\n1.3, ill|clear|ill \n1.4,ill|unsure\n",
        multi_label=True,
        **{name: {"uid": f"1.{i + 1}", "patient": "P"} for i, name in enumerate("abcd")},
    )
    assert [row.label for row in source.scan.rows] == [(1,), (), (0, 1)]
    assert [row.fields["class"] for row in source.scan.rows] == [("ill",), (), ("ill", "clear", "ill")]
    assert _reasons(source) == {"1.4": "label 'unsure' is none of the labels clear, ill"}


def test_patients_of_one_number_and_two_issuers_are_two(tmp_path: Path) -> None:
    source = _dicom(
        tmp_path,
        "SOPInstanceUID,label\n1.1,ill\n1.2,clear\n",
        a={"uid": "1.1", "IssuerOfPatientID": "H1"},
        b={"uid": "1.2", "IssuerOfPatientID": "H2"},
    )
    assert [row.patient for row in source.scan.rows] == ["P1@H1", "P1@H2"]
    assert [row.fields["patient"] for row in source.scan.rows] == ["P1", "P1"]


def test_dicom_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs data\.labels"):
        _open(tmp_path, "dicom")


# --- image-folder --------------------------------------------------------------------------------------------------------


def test_image_folder(tmp_path: Path) -> None:
    for name in ("clear/7_a.png", "ill/7_b.png", "ill/lonely.png", "other/x.png", "clear/deeper/no.png", "loose.png"):
        _picture(tmp_path / name)
    source = _open(tmp_path, "image-folder")
    assert [(row.item, row.patient, row.label) for row in source.scan.rows] == [
        ("clear/7_a.png", "7", 0),
        ("ill/7_b.png", "7", 1),
        ("ill/lonely.png", "ill/lonely.png", 1),
    ]
    assert _reasons(source) == {"other/x.png": "label 'other' is none of the classes clear, ill"}
    np.testing.assert_allclose(source.load(0), GREY / 255, atol=1e-6)
    with pytest.raises(DataError, match="no image folder at"):
        _open(tmp_path / "none", "image-folder")


def test_broken_pictures_are_problems_at_load(tmp_path: Path) -> None:
    jpeg = _picture(tmp_path / "clear" / "cut.jpg", np.tile(GREY, (8, 8)))
    jpeg.write_bytes(jpeg.read_bytes()[:-300])
    (tmp_path / "clear" / "empty.png").write_bytes(b"")
    png = _picture(tmp_path / "clear" / "noise.png", np.tile(GREY, (8, 8)))
    damaged = bytearray(png.read_bytes())
    damaged[45:60] = b"\xff" * 15
    png.write_bytes(bytes(damaged))
    (tmp_path / "clear" / "notes.txt").write_text("no picture")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "clear" / "real.tif")
    source = _open(tmp_path, "image-folder")
    assert len(source.scan.rows) == 5
    for i in range(4):
        with pytest.raises(DataError, match="not a readable image"):
            source.load(i)
    with pytest.raises(DataError, match="image of mode F; expected 8 or 16 bits"):
        source.load(4)


def test_pictures_of_16_bits_keep_their_depth(tmp_path: Path) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    _picture(tmp_path / "clear" / "a.png", ramp)
    np.testing.assert_allclose(_open(tmp_path, "image-folder").load(0), ramp / 65535, atol=1e-6)


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 8)), (3, (8, 8, 3))])
def test_channels(tmp_path: Path, channels: int, shape: tuple[int, ...]) -> None:
    _picture(tmp_path / "clear" / "a.png", np.dstack([GREY] * 3))
    image = _open(tmp_path, "image-folder", channels=channels).load(0)
    assert image.shape == shape
    assert image.dtype == np.float32


# --- csv -----------------------------------------------------------------------------------------------------------------


def _csv(tmp_path: Path, text: str, **data: Any) -> Source:
    (tmp_path / "labels.csv").write_text(text)
    return _open(tmp_path / "pictures", "csv", labels=tmp_path / "labels.csv", **data)


def test_csv(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "unnamed"):
        _picture(tmp_path / "pictures" / f"{name}.png")
    source = _csv(
        tmp_path,
        "image,label,patient,StationName\na.png,ill,anna@home,MR7\nb.png,clear,,\nc.png,odd,p,\ngone.png,ill,p,\n,ill,p,\n",
    )
    first, second = source.scan.rows
    assert (first.item, first.patient, first.label) == ("a.png", "anna@home", 1)
    assert first.fields == {
        "site": "site-1",
        "class": "ill",
        "patient": "anna@home",
        "item": "a.png",
        "StationName": "MR7",
    }
    assert (second.patient, second.fields["StationName"]) == ("b.png", None)
    assert _reasons(source) == {
        "c.png": "label 'odd' is none of the classes clear, ill",
        "gone.png": "label without an image",
        "": "label without an image",
    }


def test_csv_patient_column(tmp_path: Path) -> None:
    for name in "ab":
        _picture(tmp_path / "pictures" / f"{name}.png")
    text = "image,label,subject\na.png,ill,s1\nb.png,ill,s1\n"
    assert [row.patient for row in _csv(tmp_path, text, patient_column="subject").scan.rows] == ["s1", "s1"]
    assert [row.patient for row in _csv(tmp_path, text).scan.rows] == ["a.png", "b.png"]


def test_csv_lines_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2"):
        _csv(tmp_path, "label,image\nill\n")
    with pytest.raises(DataError, match="lacks the column image"):
        _csv(tmp_path, "file,label\na.png,ill\n")


# --- npz -----------------------------------------------------------------------------------------------------------------


def _npz(tmp_path: Path, **arrays: Any) -> Source:
    np.savez(tmp_path / "a.npz", **arrays)
    return _open(tmp_path / "a.npz", "npz")


IMAGES = np.stack([GREY, GREY[::-1], GREY.T])


def test_npz(tmp_path: Path) -> None:
    source = _npz(tmp_path, images=IMAGES, labels=[0, 5, 1])
    assert [(row.item, row.patient, row.label) for row in source.scan.rows] == [("0", "0", 0), ("2", "2", 1)]
    assert _reasons(source) == {"1": "label 'number 5' is none of the classes clear, ill"}
    np.testing.assert_allclose(source.load(1), GREY.T / 255, atol=1e-6)  # the row's image, not the file's second


def test_npz_of_floats(tmp_path: Path) -> None:
    images = np.stack([GREY / 255.0, GREY / 1.0, np.full((8, 8), np.nan)])
    source = _npz(tmp_path, images=images, labels=[0, 0, 0])
    np.testing.assert_allclose(source.load(0), GREY / 255, atol=1e-6)
    assert source.load(0).dtype == np.float32
    for i in (1, 2):
        with pytest.raises(DataError, match=r"floats must lie in \[0, 1\]"):
            source.load(i)


def test_npz_in_parts_with_patients(tmp_path: Path) -> None:
    parts = {f"{part}_images": IMAGES for part in ("train", "val", "test")}
    labels = {f"{part}_labels": [[0], [1], [1]] for part in ("train", "val", "test")}  # as MedMNIST has them
    patients = {f"{part}_patients": [part, part, "common"] for part in ("train", "val", "test")}
    source = _npz(tmp_path, **parts, **labels, **patients)
    assert [row.label for row in source.scan.rows] == [0, 1, 1] * 3
    assert " ".join(row.patient for row in source.scan.rows) == "train train common val val common test test common"


def _volumes(tmp_path: Path, images: np.ndarray) -> Source:
    path = tmp_path / "a.npz"
    np.savez(path, images=images, labels=[0] * len(images))
    return open_source(SiteConfig(name="a", data=DataSettings(source="npz", path=path, classes=("clear", "ill"), dims=3)))


def test_npz_of_volumes(tmp_path: Path) -> None:
    volumes = np.stack([IMAGES, IMAGES[::-1]])  # as MedMNIST's 3-D sets have them
    loaded = _volumes(tmp_path, volumes).load(1)
    assert loaded.shape == (3, 8, 8)
    np.testing.assert_allclose(loaded, IMAGES[::-1] / 255, atol=1e-6)


def test_images_are_no_volumes_and_volumes_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shape \(3, 8, 8\); expected volumes \(N, slices, rows, columns"):
        _volumes(tmp_path, IMAGES)
    with pytest.raises(DataError, match=r"shape \(2, 3, 8, 8\); expected images .*for volumes set dims = 3"):
        _npz(tmp_path, images=np.stack([IMAGES, IMAGES]), labels=[0, 0])


def test_volumes_come_as_arrays_only() -> None:
    with pytest.raises(ValueError, match="dims = 3 needs source = 'npz'"):
        DataSettings(source="dicom", path=Path("a"), classes=("clear", "ill"), dims=3)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"pictures": IMAGES}, "lacks images; it has pictures"),
        ({"images": IMAGES}, "lacks labels; it has images"),
        ({"train_images": IMAGES, "train_labels": [0] * 3, "test_images": IMAGES}, "lacks test_labels"),
        ({"images": IMAGES, "labels": [0, 1]}, r"3 images but labels of shape \(2,\)"),
        ({"images": IMAGES, "labels": np.eye(3)}, r"labels of shape \(3, 3\)"),
        ({"images": IMAGES, "labels": ["a", "b", "c"]}, "labels are <U1"),
        ({"images": IMAGES, "labels": np.array([{}] * 3)}, "no readable npz file"),
        ({"images": IMAGES, "labels": [0] * 3, "patients": ["a"]}, "3 images but 1 patients"),
        ({"images": IMAGES.astype(np.int64), "labels": [0] * 3}, "images are int64"),
        ({"images": GREY[0], "labels": [0] * 8}, r"of shape \(8,\)"),
        (
            {"train_images": IMAGES, "train_labels": [0] * 3, "test_images": IMAGES[:, :4], "test_labels": [0] * 3},
            "the parts of images do not fit together",
        ),
    ],
)
def test_npz_that_cannot_be_used_says_why(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        _npz(tmp_path, **arrays)


def _saved(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text", _saved(IMAGES)])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no readable npz file at"):
        _open(path, "npz")


def test_a_missing_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable npz file at"):
        _open(tmp_path / "none.npz", "npz")


def test_the_stamp_changes_with_a_file(tmp_path: Path) -> None:
    path = _picture(tmp_path / "clear" / "a.png")
    before = _open(tmp_path, "image-folder").stamp
    assert _open(tmp_path, "image-folder").stamp == before
    _picture(path, GREY.T)
    assert _open(tmp_path, "image-folder").stamp != before
