"""From one DICOM file to one image in [0, 1].

The order is the standard's (PS3.3 C.11.1, C.7.6.3.1.2): stored values → modality LUT or rescale → VOI → MONOCHROME1 inverted →
[0, 1]. Values stay at full depth until the end; pydicom does not invert MONOCHROME1 by itself. What VOI means hangs on the
modality:

    CT              a fixed window in Hounsfield units, the same at every site
    CR, DX, MG      the file's VOI LUT, else its window (linear, linear exact or sigmoid)
    all others      the file's window
    without either  the image's own range, without its padding
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000, UID, JPEG2000Lossless, RLELossless

from excise.client.decoded import Decoded, fingerprint
from excise.common.errors import DataError

PIPELINE = "pixels-3"
"""Part of the cache key: raise it when decoding changes."""
WITH_VOI_LUT = ("CR", "DX", "MG")
"""Modalities whose vendors put the look of an image into a VOI LUT (PS3.3 C.11.2)."""
DEFERRED = 64 * 2**20
"""Bytes above which pixel data is not read with the header: a file of many frames may be larger than memory."""
_FIRST = dict.fromkeys([RLELossless, JPEG2000, JPEG2000Lossless], "pylibjpeg")
"""Decoders asked before those that come first in pydicom's own order: for RLE one in Python, eight times as slow; for
JPEG 2000 gdcm, which sets all processors on one image, where ours each have one of their own."""
_PALETTE = [
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue", "Alpha")
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
_ASKED = [
    tag_for_keyword(keyword) or 0  # numbers: names would be looked up for every file
    for keyword in (
        *("SOPClassUID", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
        *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
        *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
        *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "VOILUTFunction"),
        *("WindowCenter", "WindowWidth", "PixelPaddingValue", "PixelPaddingRangeLimit", "PaletteColorLookupTableUID"),
        *_PALETTE,
    )
]
"""All that decoding asks of a file: to read the rest would take as long again."""
Frames = Literal["skip", "first", "middle"]
Grey = NDArray[np.float64]
Stored = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Rules:
    """What is wanted of every file; the same at every site.

    Attributes
    ----------
    colour : colour images alone, as RGB; else grey images alone
    frames : what becomes of a file of several frames: nothing, or one of them
    ct_window : centre and width, Hounsfield units
    """

    colour: bool = False
    frames: Frames = "skip"
    ct_window: tuple[float, float] = (40.0, 400.0)


def decode(file: Path | Dataset, rules: Rules = Rules()) -> Decoded:
    """Decode one image: (rows, columns), of colour (rows, columns, 3).

    Raises
    ------
    DataError : the file is truncated, has no usable pixels, or is of a kind that is not wanted; says which
    """
    opened = _opened(file)
    dataset, kind, frames = opened.dataset, opened.kind, opened.frames
    grey = kind in ("MONOCHROME1", "MONOCHROME2")
    if grey == rules.colour:
        wanted = "colour; set data.channels = 1" if rules.colour else "grey (MONOCHROME1 or 2); set data.channels = 3"
        raise DataError(f"{kind} image; expected {wanted} for such images")
    if frames > 1 and rules.frames == "skip":
        raise DataError(f"multi-frame image with {frames} frames; expected one. To use one of them set data.frames")
    stored = opened.frame(frames // 2 if rules.frames == "middle" else 0)
    if stored.size == 0 or stored.ndim != (2 if grey or kind == "PALETTE COLOR" else 3):
        raise DataError(f"image of shape {stored.shape}; expected rows × columns, of colour × 3")
    try:
        image = _grey(stored, dataset, rules) if grey else _colour(stored, dataset, kind)
    except DataError:
        raise
    except Exception as error:  # a rescale, a window or a palette that is empty or no number raises many kinds too
        raise DataError(f"rescale, window or palette cannot be used ({type(error).__name__}): {error}") from error
    return Decoded(image.astype(np.float32), opened.identity(stored))


def fingerprint_of(file: Path | Dataset) -> str:
    """The fingerprint of an image of whatever kind, wanted or not.

    Raises
    ------
    DataError : it cannot be decoded
    """
    opened = _opened(file)
    return opened.identity(opened.frame(0))


@dataclass(frozen=True)
class _Opened:
    """A file with an image; `kind` is its photometric interpretation."""

    file: Path | Dataset
    dataset: Dataset
    kind: str
    frames: int

    def frame(self, index: int) -> Stored:
        """Stored values of one frame; YBR becomes RGB. Of several frames only this one is read and decoded."""
        uid = self.dataset.file_meta.get("TransferSyntaxUID")
        self._check_size(uid)
        where = self.file if self.frames > 1 else self.dataset
        if uid in _FIRST:
            with suppress(Exception):  # the others may be more lenient, and tell the reason
                return pixel_array(where, index=index, decoding_plugin=_FIRST[uid])
        try:
            return pixel_array(where, index=index)
        except Exception as error:  # the decoders raise many kinds
            told = f"pixels of {_named(uid) or 'no'} transfer syntax cannot be decoded ({type(error).__name__}): {error}"
            raise DataError(told + _to_install(uid)) from error

    def _check_size(self, uid: UID | None) -> None:
        """Refuse a file far larger than its image before it is read: it may not fit into memory."""
        if (
            not isinstance(self.file, Path)
            or (size := self.file.stat().st_size) < DEFERRED
            or uid is None
            or uid.is_encapsulated
        ):
            return
        bits = [int(self.dataset.get(key) or 0) for key in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
        expected = math.prod(bits) * self.frames // 8
        if size > 2 * expected + DEFERRED:
            raise DataError(f"file of {size:,} bytes; expected {expected:,} for its pixels")

    def identity(self, stored: Stored) -> str:
        """That of `stored`; of several frames that of the first and the middle one, whichever is used: one may be black."""
        if self.frames == 1:
            return fingerprint(stored)
        return fingerprint(np.array([self.frames]), self.frame(0), self.frame(self.frames // 2))


def _opened(file: Path | Dataset) -> _Opened:
    try:
        dataset = file if isinstance(file, Dataset) else pydicom.dcmread(file, defer_size=DEFERRED, specific_tags=_ASKED)
        frames = int(dataset.get("NumberOfFrames") or 1)
    except InvalidDicomError as error:
        raise DataError("not a DICOM file") from error
    except Exception as error:  # pydicom raises many kinds; the scan must go on, with the reason kept
        raise DataError(f"header cannot be read ({type(error).__name__}): {error}") from error
    kind = str(dataset.get("PhotometricInterpretation", ""))
    if not kind or "Rows" not in dataset:
        raise DataError(f"holds no image, but a {_named(dataset.get('SOPClassUID')) or 'file without an SOP class'}")
    return _Opened(file, dataset, kind, frames)


def _to_install(uid: UID | None) -> str:
    """What more could decode a transfer syntax, were it installed."""
    try:
        missing = get_decoder(uid).missing_dependencies if uid else []
    except NotImplementedError:
        missing = []
    return f"; not installed: {', '.join(missing)}" if missing else ""


def _named(uid: UID | None) -> str:
    """The standard's name of a UID; the UID itself where it has none."""
    return uid.name if uid else ""


def _colour(stored: Stored, dataset: Dataset, kind: str) -> NDArray[np.float64]:
    if kind == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)[..., :3]
    bits = 8 * stored.itemsize if kind == "PALETTE COLOR" else int(dataset.BitsStored)
    colour: NDArray[np.float64] = stored.astype(np.float64) / (2**bits - 1)
    return colour


def _grey(stored: Stored, dataset: Dataset, rules: Rules) -> Grey:
    rescaled = apply_modality_lut(stored, dataset)
    values = rescaled.astype(np.float64)  # a copy: what follows changes it in place
    if rescaled.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("rescaled values are not finite")
    padding = _padding(stored, dataset)
    image = _voi(values, dataset, rules, padding)
    np.clip(image, 0, 1, out=image)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        image = 1 - image
    if padding is not None:
        image[padding] = 0  # the collimated or circular surround is no anatomy, black in either interpretation
    return image


def _voi(values: Grey, dataset: Dataset, rules: Rules, padding: NDArray[np.bool_] | None) -> Grey:
    """Values of interest to [0, 1], not clipped; `values` may be overwritten."""
    modality = str(dataset.get("Modality", ""))
    if modality == "CT":
        return _linear(values, *rules.ct_window)
    if modality in WITH_VOI_LUT and "VOILUTSequence" in dataset:
        return _voi_lut(values, dataset.VOILUTSequence[0])
    first = [np.atleast_1d(dataset.get(key))[0] for key in ("WindowCenter", "WindowWidth")]
    if all(value not in (None, "") for value in first):  # scanners leave them empty
        centre, width = map(float, first)
        window = _WINDOWS.get(str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper())
        if window is None:
            raise DataError(f"VOI LUT function {dataset.VOILUTFunction}; the standard has {', '.join(_WINDOWS)}")
        if math.isfinite(centre) and math.isfinite(width) and width >= (1 if window is _linear else 1e-9):
            return window(values, centre, width)
    inside = values if padding is None or padding.all() else values[~padding]
    low, high = float(inside.min()), float(inside.max())
    values -= low
    values /= max(high - low, 1e-9)
    return values


def _linear(values: Grey, centre: float, width: float) -> Grey:
    """PS3.3 C.11.2.1.2.1: black up to c − 0.5 − (w−1)/2, white above c − 0.5 + (w−1)/2."""
    return (values - (centre - 0.5 - (width - 1) / 2)) / max(width - 1, 1e-9)


def _linear_exact(values: Grey, centre: float, width: float) -> Grey:
    """PS3.3 C.11.2.1.3.2."""
    return (values - centre) / width + 0.5


def _sigmoid(values: Grey, centre: float, width: float) -> Grey:
    """PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))


_WINDOWS: dict[str, Callable[[Grey, float, float], Grey]] = {
    "LINEAR": _linear,
    "LINEAR_EXACT": _linear_exact,
    "SIGMOID": _sigmoid,
}


def _voi_lut(values: Grey, item: Dataset) -> Grey:
    """PS3.3 C.11.2.1.1: the table's entries, whose number of bits says what is white."""
    entries, first, bits = (int(n) for n in item.LUTDescriptor)
    entries = entries or 65536  # 0 stands for 2^16
    if first > 32767 and values.min() < 0:
        first -= 65536  # written unsigned, meant signed as the values are
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    if len(table) < entries:  # 8-bit entries, packed two to a word
        table = np.frombuffer(np.asarray(table, "<u2").tobytes(), np.uint8)
    index = np.clip(values - first, 0, entries - 1).astype(np.int64)
    looked_up: Grey = table[index].astype(np.float64) / (2**bits - 1)
    return looked_up


def _padding(stored: Stored, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Pixels that pad the image to a rectangle (PS3.3 C.7.5.1.1.2), bool; None where the file names none."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None:
        return None
    low, high = sorted((int(value), int(value if limit is None else limit)))
    padding: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return padding if padding.any() else None
