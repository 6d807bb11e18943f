"""The fingerprint of an image: of what is stored, whatever it is stored as and whatever the site wants of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from excise.client.decoded import fingerprint
from excise.client.dicom.pixels import Rules, decode, fingerprint_of
from excise.common.errors import DataError
from tests.dicoms import write_dicom

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
MR = "MR_small.dcm"


def shipped(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm"],
)
def test_another_lossless_syntax_does_not_change_it(name: str) -> None:
    assert fingerprint_of(shipped(name)) == fingerprint_of(shipped(MR)) == decode(shipped(MR)).pixels


@pytest.mark.parametrize(
    "changed",
    [{"WindowCenter": "9", "WindowWidth": "7"}, {"RescaleSlope": "2", "RescaleIntercept": "1"}, {"Modality": "CT"}],
)
def test_another_window_or_rescale_does_not_change_it(tmp_path: Path, changed: dict[str, Any]) -> None:
    plain, other = write_dicom(tmp_path / "a", RAMP), write_dicom(tmp_path / "b", RAMP, "1.9", "SOMEBODY", **changed)
    assert decode(plain).pixels == decode(other).pixels
    assert decode(other, Rules(ct_window=(1.0, 99.0))).pixels == decode(plain).pixels


def test_frames_and_colour_settings_do_not_change_it(tmp_path: Path) -> None:
    cine = write_dicom(tmp_path / "a", np.stack([RAMP * 0, RAMP, RAMP[::-1]]), NumberOfFrames="3")
    other = write_dicom(tmp_path / "b", np.stack([RAMP * 0, RAMP[::-1], RAMP]), NumberOfFrames="3")
    told = {decode(cine, Rules(frames="first")).pixels, decode(cine, Rules(frames="middle")).pixels, fingerprint_of(cine)}
    assert len(told) == 1
    assert told != {fingerprint_of(other)}  # of the same first frame, a black one
    colour = shipped("SC_rgb_rle.dcm")
    with pytest.raises(DataError):
        decode(colour)
    assert fingerprint_of(colour) == decode(colour, Rules(colour=True)).pixels


def test_an_image_in_memory_is_as_one_in_a_file() -> None:
    for name in (MR, "SC_rgb_rle_2frame.dcm"):
        assert fingerprint_of(pydicom.dcmread(shipped(name))) == fingerprint_of(shipped(name))


def test_another_image_has_another(tmp_path: Path) -> None:
    other = RAMP.copy()
    other[63, 63] -= 1
    assert decode(write_dicom(tmp_path / "a", RAMP)).pixels != decode(write_dicom(tmp_path / "b", other)).pixels
    with pytest.raises(DataError):
        fingerprint_of(shipped("rtplan.dcm"))


def test_values_count_and_shapes_but_not_types() -> None:
    signed, unsigned = RAMP.astype(np.int16), RAMP.astype(">u2")
    assert fingerprint(signed) == fingerprint(unsigned) == fingerprint(np.asfortranarray(RAMP))
    told = [fingerprint(array) for array in (RAMP, RAMP.reshape(32, 128), RAMP.astype(np.float32), RAMP + 1)]
    assert len(set(told)) == 4
    assert fingerprint(RAMP, RAMP) != fingerprint(np.concatenate([RAMP, RAMP]))
