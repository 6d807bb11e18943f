"""Decoded images against two other readers, on real files: dcmtk, which renders them too, and SimpleITK, by its own gdcm.

The files are pydicom's own and those of `pydicom-data`: CT, MR, CR, NM, US, RT dose, segmentations; every transfer syntax that
a site decodes.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.data import get_testdata_files

from excise.client.dicom.pixels import _opened, decode
from excise.common.errors import DataError

TURNED = {"rtdose_expb_1frame.dcm"}
"""Files that dcmtk reads with their bytes in the wrong order; their twins in little endian are the same image."""


def _grey_images() -> dict[str, Path]:
    """Every file that we decode to a grey image."""
    found: dict[str, Path] = {}
    for path in sorted(map(Path, map(str, get_testdata_files()))):
        if path.is_file():
            try:
                decode(path)
            except DataError:
                continue
            found[path.name] = path
    return found


IMAGES = _grey_images()
SYNTAXES = {name: pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for name, path in IMAGES.items()}
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def _rendered(path: Path, header: pydicom.Dataset, to: Path) -> NDArray[np.float64]:
    """What dcmtk makes of a file."""
    if header.get("Modality") == "CT":
        how = ["+Ww", "40", "400"]
    else:
        how = ["+Wi", "1"] if header.get("WindowCenter") not in (None, "") else ["+Wm"]
    program = shutil.which("dcml2pnm" if "JPEG-LS" in header.file_meta.TransferSyntaxUID.name else "dcmj2pnm")
    assert program, "dcmtk is missing; make test installs it"
    subprocess.run([program, "--no-overlays", "--write-16-bit-pnm", *how, path, to], check=True, capture_output=True)
    _, columns, rows, white, *values = to.read_text().split()
    return np.array(values, dtype=np.float64).reshape(int(rows), int(columns)) / int(white)


def test_there_are_real_files_of_many_kinds() -> None:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in IMAGES.values()]
    assert len(IMAGES) > 60
    assert {"CT", "MR", "CR", "NM", "US", "RTDOSE", "SEG"} <= {header.get("Modality") for header in headers}
    assert len(set(SYNTAXES.values())) >= 9


@pytest.mark.parametrize("name", [name for name, syntax in SYNTAXES.items() if "JPEG 2000" not in syntax.name])  # it has none
def test_dcmtk_renders_the_same(tmp_path: Path, name: str) -> None:
    path = IMAGES[name]
    rendered = _rendered(path, pydicom.dcmread(path, stop_before_pixels=True), tmp_path / "image.pgm")
    if name in TURNED:
        np.testing.assert_array_equal(decode(path).image, decode(IMAGES[name.replace("_expb", "")]).image)
    else:
        np.testing.assert_allclose(decode(path).image, rendered, atol=1e-3)  # it has tables of 4096 entries here and there


@pytest.mark.parametrize("name", [name for name in IMAGES if "rtdose" not in name])  # SimpleITK reads no dose of one frame
def test_simpleitk_reads_the_same_values(name: str) -> None:
    header = pydicom.dcmread(IMAGES[name], stop_before_pixels=True)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(IMAGES[name]))
    values = sitk.GetArrayFromImage(reader.Execute())[0]
    stored = _opened(IMAGES[name]).frame(0)
    rescaled = stored * float(header.get("RescaleSlope") or 1) + float(header.get("RescaleIntercept") or 0)
    if header.PhotometricInterpretation == "MONOCHROME1":  # SimpleITK turns these over within their range
        values = rescaled.flat[0] + values.flat[0] - values
    elif header.BitsStored == 1:  # and makes 255 of 1
        values = values / 255
    np.testing.assert_allclose(rescaled, values, rtol=1e-6)
