"""From a DICOM file to [0, 1]: the standard's order, full depth, and a clear word about every file that is no grey image."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.sequence import Sequence

from excise.client.dicom.headers import read_headers
from excise.client.dicom.pixels import Rules, decode
from excise.common.errors import DataError
from tests.dicoms import dataset, write_dicom

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def image_of(path: Path, *rules: Rules) -> NDArray[np.float32]:
    return decode(path, *rules).image


def _decoded(tmp_path: Path, pixels: NDArray[Any] = RAMP, **fields: Any) -> NDArray[np.float32]:
    return image_of(write_dicom(tmp_path / "a.dcm", pixels, **fields))


def test_own_range_keeps_every_grey_value(tmp_path: Path) -> None:
    image = _decoded(tmp_path)
    assert image.dtype == np.float32
    assert image.shape == (64, 64)
    np.testing.assert_allclose(image, RAMP / 4095, atol=1e-6)
    assert len(np.unique(image)) == 4096


def test_all_16_bits_stay_distinguishable(tmp_path: Path) -> None:
    assert len(np.unique(_decoded(tmp_path, np.arange(65536, dtype=np.uint16).reshape(256, 256)))) == 65536


@pytest.mark.parametrize("window", [{}, {"WindowCenter": "2048", "WindowWidth": "1001"}])
def test_monochrome1_is_inverted_last(tmp_path: Path, window: dict[str, str]) -> None:
    normal = _decoded(tmp_path, **window)
    inverted = _decoded(tmp_path, PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(inverted, 1 - normal, atol=1e-6)


def test_the_window_is_in_rescaled_values(tmp_path: Path) -> None:
    # PS3.3 C.11.2.1.2.1: x ≤ c − 0.5 − (w−1)/2 is black, x > c − 0.5 + (w−1)/2 white; here −101 and 99
    rescaled = 2.0 * RAMP - 1024
    image = _decoded(tmp_path, RescaleSlope="2", RescaleIntercept="-1024", WindowCenter="-0.5", WindowWidth="201")
    np.testing.assert_allclose(image, np.clip((rescaled + 101) / 200, 0, 1), atol=1e-6)


def test_signed_values_and_a_negative_slope(tmp_path: Path) -> None:
    signed = (RAMP.astype(np.int32) - 2048).astype(np.int16)
    np.testing.assert_allclose(_decoded(tmp_path, signed), RAMP / 4095, atol=1e-6)
    flipped = _decoded(tmp_path, signed, RescaleSlope="-1", RescaleIntercept="0")
    np.testing.assert_allclose(flipped, 1 - RAMP / 4095, atol=1e-6)


def test_the_first_of_several_windows_counts(tmp_path: Path) -> None:
    several = _decoded(tmp_path, WindowCenter=["100", "3000"], WindowWidth=["101", "500"])
    np.testing.assert_array_equal(several, _decoded(tmp_path, WindowCenter="100", WindowWidth="101"))


@pytest.mark.parametrize("width", ["0", "0.5", "-100"])
def test_a_window_narrower_than_one_is_ignored(tmp_path: Path, width: str) -> None:
    np.testing.assert_array_equal(_decoded(tmp_path, WindowCenter="100", WindowWidth=width), _decoded(tmp_path))


@pytest.mark.parametrize(
    "window",
    [{"WindowCenter": "", "WindowWidth": ""}, {"WindowCenter": "40", "WindowWidth": ""}, {"WindowCenter": "40"}],
)
def test_an_empty_window_is_no_window(tmp_path: Path, window: dict[str, str]) -> None:
    np.testing.assert_array_equal(_decoded(tmp_path, **window), _decoded(tmp_path))


def test_a_window_of_width_one_is_a_threshold(tmp_path: Path) -> None:
    np.testing.assert_array_equal(_decoded(tmp_path, WindowCenter="2000.5", WindowWidth="1"), RAMP > 2000)


@pytest.mark.parametrize(("kind", "value"), [("MONOCHROME2", 0), ("MONOCHROME1", 1)])
def test_a_constant_image_is_black_and_finite(tmp_path: Path, kind: str, value: float) -> None:
    image = _decoded(tmp_path, np.full((16, 16), 700, np.uint16), PhotometricInterpretation=kind)
    np.testing.assert_array_equal(image, np.full((16, 16), value))


@pytest.mark.parametrize(
    ("pixels", "fields", "reason"),
    [
        (np.zeros((2, 8, 8), np.uint16), {"NumberOfFrames": "2"}, "multi-frame image with 2 frames; expected one"),
        (
            np.zeros((3, 8, 8), np.uint16),
            {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"},
            "RGB image; expected grey",
        ),
        (RAMP, {"PixelData": b"\0" * 100}, "less than expected"),
        (RAMP, {"PixelData": b""}, "pixels of Explicit VR Little Endian transfer syntax cannot be decoded"),
        (RAMP, {"PixelData": None}, "Pixel Data"),
        (RAMP, {"PhotometricInterpretation": None}, "holds no image, but a MR Image Storage"),
        (RAMP, {"Rows": 0}, "cannot be decoded"),
        (RAMP, {"RescaleSlope": "", "RescaleIntercept": "0"}, "rescale, window or palette cannot be used"),
    ],
)
def test_a_file_that_is_no_grey_image_is_refused_with_its_reason(
    tmp_path: Path, pixels: NDArray[Any], fields: dict[str, Any], reason: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", pixels, **fields)
    with pytest.raises(DataError, match=reason):
        image_of(path)


@pytest.mark.parametrize("key", ["RescaleSlope", "WindowWidth"])
def test_numbers_that_are_no_numbers_are_a_data_error(tmp_path: Path, key: str) -> None:
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, **{"RescaleSlope": "1", "RescaleIntercept": "0", "WindowCenter": "1", key: "123456"}
    )
    path.write_bytes(path.read_bytes().replace(b"123456", b"ab-cde"))
    with pytest.raises(DataError, match="rescale, window or palette cannot be used"):
        image_of(path)


def test_what_is_not_dicom_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"SOPInstanceUID,label\n" * 20)
    with pytest.raises(DataError, match="not a DICOM file"):
        image_of(path)
    with pytest.raises(DataError, match="FileNotFoundError"):
        image_of(tmp_path / "none.dcm")


@pytest.mark.parametrize("kept", [0, 100, 140, 300, 0.5, 0.99])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kept: float) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if isinstance(kept, int) else kept * len(whole))])
    with pytest.raises(DataError):
        image_of(path)


def _shipped(name: str) -> Path:
    path = pydicom.data.get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_padded.dcm",
        "rtdose_1frame.dcm",
    ],
)
@pytest.mark.filterwarnings("ignore")  # of files that are odd on purpose
def test_pydicoms_own_files_decode(name: str) -> None:
    image = image_of(_shipped(name))
    assert image.dtype == np.float32
    assert image.ndim == 2
    assert 0 <= image.min() < image.max() <= 1


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm"])
@pytest.mark.filterwarnings("ignore")
def test_lossless_encodings_give_the_same_image(name: str) -> None:
    np.testing.assert_array_equal(image_of(_shipped(name)), image_of(_shipped("MR_small.dcm")))


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_16.dcm"])
@pytest.mark.filterwarnings("ignore")
def test_jpeg_ls_decodes(name: str) -> None:
    image = image_of(_shipped(name))
    assert 0 <= image.min() < image.max() <= 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "less than expected"),
        ("SC_rgb_rle.dcm", "RGB image"),
        ("examples_palette.dcm", "PALETTE COLOR image"),
        ("rtdose.dcm", "multi-frame image with 15 frames"),
        ("rtplan.dcm", "holds no image, but a RT Plan Storage"),
        ("JPGExtended.dcm", "JPEG Extended .* transfer syntax cannot be decoded .*not installed: pylibjpeg"),
        ("badVR.dcm", "header cannot be read"),
        ("no_meta.dcm", "not a DICOM file"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_pydicoms_own_files_that_are_no_grey_images(name: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"(?s){reason}"):
        image_of(_shipped(name))


# ---- what hangs on the modality, the kind of image and the frames -------------------------------------------------------


def test_ct_has_one_window_everywhere_whatever_the_file_says(tmp_path: Path) -> None:
    hounsfield = (RAMP.astype(np.int32) - 1024).astype(np.int16)
    fields = {"Modality": "CT", "WindowCenter": "-600", "WindowWidth": "1500"}
    image = _decoded(tmp_path, hounsfield, **fields)
    np.testing.assert_allclose(image, np.clip((hounsfield + 160.0) / 399, 0, 1), atol=1e-6)  # 40 ± 200 of PS3.3 C.11.2.1.2.1
    lung = image_of(tmp_path / "a.dcm", Rules(ct_window=(-600.0, 1500.0)))
    np.testing.assert_array_equal(lung, _decoded(tmp_path, hounsfield, **(fields | {"Modality": "PT"})))


@pytest.mark.parametrize(
    ("function", "formula"),
    [
        ("LINEAR_EXACT", lambda x: (x - 2000) / 1000 + 0.5),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 2000) / 1000))),
        ("linear ", lambda x: (x - (2000 - 0.5 - 999 / 2)) / 999),
    ],
)
def test_each_window_function_is_the_standards(tmp_path: Path, function: str, formula: Callable[[Any], Any]) -> None:
    image = _decoded(tmp_path, VOILUTFunction=function, WindowCenter="2000", WindowWidth="1000")
    np.testing.assert_allclose(image, np.clip(formula(RAMP.astype(np.float64)), 0, 1), atol=1e-6)


def test_an_unknown_window_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="VOI LUT function CUBIC; the standard has LINEAR, LINEAR_EXACT, SIGMOID"):
        _decoded(tmp_path, VOILUTFunction="CUBIC", WindowCenter="2000", WindowWidth="1000")


def _lut(entries: list[int], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], np.array(entries, "<u2").tobytes()
    return Sequence([item])


@pytest.mark.parametrize(("modality", "used"), [("DX", True), ("CR", True), ("MG", True), ("MR", False)])
def test_a_voi_lut_comes_before_the_window_where_vendors_use_it(tmp_path: Path, modality: str, used: bool) -> None:
    fields: dict[str, Any] = {"Modality": modality, "WindowCenter": "2000", "WindowWidth": "1000"}
    plain = _decoded(tmp_path, **(fields | {"Modality": "MR"}))
    entries = [(i * 3) % 1024 for i in range(256)]
    image = _decoded(tmp_path, VOILUTSequence=_lut(entries, 1000, 10), **fields)
    looked_up = np.array(entries)[np.clip(RAMP.astype(int) - 1000, 0, 255)] / 1023
    np.testing.assert_allclose(image, looked_up if used else plain, atol=1e-6)


def test_padding_is_black_and_outside_the_range(tmp_path: Path) -> None:
    pixels = RAMP + 1000
    pixels[:8] = 65535
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        image = _decoded(tmp_path, pixels, PixelPaddingValue=65535, PhotometricInterpretation=kind)
        assert image[:8].max() == 0
        assert (image[8:].min(), image[8:].max()) == (0, 1)
    ranged = _decoded(tmp_path, pixels, PixelPaddingValue=60000, PixelPaddingRangeLimit=65535)
    assert ranged[:8].max() == 0
    assert ranged[8:].max() == 1


def test_of_several_frames_the_wanted_one_is_read(tmp_path: Path) -> None:
    frames = np.stack([RAMP, RAMP[::-1], RAMP.T])
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames="3")
    np.testing.assert_allclose(image_of(path, Rules(frames="first")), RAMP / 4095, atol=1e-6)
    np.testing.assert_allclose(image_of(path, Rules(frames="middle")), RAMP[::-1] / 4095, atol=1e-6)
    cut = path.read_bytes()
    path.write_bytes(cut[: -2 * RAMP.nbytes])
    with pytest.raises(DataError, match="cannot be decoded"):
        image_of(path, Rules(frames="middle"))


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_jpeg_dcmtk.dcm"],
)
@pytest.mark.filterwarnings("ignore")
def test_colour_is_rgb_whatever_it_was_stored_as(name: str) -> None:
    image = image_of(_shipped(name), Rules(colour=True))
    # the colours of the test image that all of these show: bars of red, green, blue, … at rows 5, 25, 45
    np.testing.assert_allclose(image[[5, 25, 45], 50], np.eye(3), atol=0.01 if "jpeg" not in name else 0.03)


@pytest.mark.filterwarnings("ignore")
def test_a_palette_is_looked_up() -> None:
    path = _shipped("examples_palette.dcm")
    colours = apply_color_lut(pydicom.dcmread(path).pixel_array, pydicom.dcmread(path))
    np.testing.assert_allclose(image_of(path, Rules(colour=True)), colours / np.iinfo(colours.dtype).max, atol=1e-6)


def test_grey_images_are_not_wanted_among_colour(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MONOCHROME2 image; expected colour; set data\.channels = 1"):
        image_of(write_dicom(tmp_path / "a.dcm", RAMP), Rules(colour=True))


@pytest.mark.filterwarnings("ignore")
def test_no_file_of_pydicoms_ends_in_anything_but_an_image_or_a_reason() -> None:
    folder = Path(pydicom.data.__file__).parent / "test_files"
    outcomes = {"image": 0, "reason": 0}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for colour in (False, True):
            try:
                image = image_of(path, Rules(colour=colour, frames="middle"))
            except DataError:
                outcomes["reason"] += 1
            else:
                outcomes["image"] += 1
                assert image.dtype == np.float32
                assert 0 <= image.min() <= image.max() <= 1
    assert outcomes["image"] > 50
    assert outcomes["reason"] > 100


def test_the_helper_writes_what_it_says(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, RAMP)
    assert dataset(RAMP).PatientID == "P1"


def test_a_file_of_two_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    content, size = path.read_bytes(), 2**31
    length = (2 * RAMP.size).to_bytes(4, "little")
    assert content.count(length) == 1
    with path.open("wb") as file:  # a hole: it takes no space on the disk
        file.write(content.replace(length, size.to_bytes(4, "little")))
        file.truncate(len(content) - 2 * RAMP.size + size)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"file of 2,147,48\d,\d+ bytes; expected 8,192 for its pixels"):
            image_of(path)
        assert not isinstance(read_headers([path])[0], str)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
