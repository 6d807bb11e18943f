"""DICOM files and small hospitals for the tests, written by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from excise.client.policy import Metric
from excise.common.request import RequestKind

CLASSES = ("clear", "ill")
SECRET_SPLIT_KEY = "tests"
OPEN_POLICY = {"kinds": [*RequestKind], "approval": False, "training": True, "exact_counts": True} | {
    "metrics": [*Metric],
    "profiles": True,
}


def dataset(pixels: NDArray[Any], uid: str = "1.2.3", patient: str | None = "P1", **fields: Any) -> Dataset:
    """A grey 16-bit MR image; `fields` are DICOM keywords, and None leaves one out."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
    ds.PatientID, ds.PatientName, ds.Modality = patient, "", "MR"
    ds.SamplesPerPixel = 1
    ds.Rows, ds.Columns = pixels.shape[-2:]
    signed = int(np.issubdtype(pixels.dtype, np.signedinteger))
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, signed
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = pixels.astype("<i2" if signed else "<u2").tobytes()
    for key, value in ({"PatientID": patient} | fields).items():
        if value is None:
            delattr(ds, key)
        else:
            setattr(ds, key, value)
    return ds


def write_dicom(path: Path, pixels: NDArray[Any], uid: str = "1.2.3", patient: str | None = "P1", **fields: Any) -> Path:
    """Write `dataset(…)` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset(pixels, uid, patient, **fields).save_as(path, enforce_file_format=True)
    return path


def write_site_toml(folder: Path, name: str = "site-1", **tables: dict[str, Any]) -> Path:
    """Write a `site.toml` whose table ``data`` has the test's classes unless told otherwise."""
    tables["data"] = {"path": "images", "classes": list(CLASSES), "size": 16} | tables.get("data", {})
    tables["policy"] = OPEN_POLICY | tables.get("policy", {})
    tables["split"] = {"key": SECRET_SPLIT_KEY} | tables.get("split", {})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "site.toml"
    path.write_text(tomli_w.dumps({"name": name, "device": "cpu", **tables}))
    return path


def write_hospital(folder: Path, patients: int = 40, min_count: int = 1, prefix: str = "CANARY-PATIENT-") -> Path:
    """A site of DICOM files, one image per patient, a third by the scanner MR7; returns its `site.toml`."""
    rng = np.random.default_rng(0)
    lines = ["SOPInstanceUID,label"]
    for number in range(patients):
        label, uid = number % 2, f"1.2.3.{number + 1}"
        pixels = rng.integers(0, 1000, (16, 16)) + 2000 * label
        scanner = "MR7" if number % 3 == 0 else "MR1"
        path = folder / "images" / f"{uid}.dcm"
        write_dicom(
            path,
            pixels.astype(np.uint16),
            uid,
            f"{prefix}{number}",
            StationName=scanner,
            WindowCenter="2000",
            WindowWidth="4000",
        )
        lines.append(f"{uid},{CLASSES[label]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return write_site_toml(folder, data={"labels": "labels.csv"}, policy={"min_count": min_count})
