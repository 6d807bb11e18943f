"""From one DICOM file to one image in [0, 1].

The order is the standard's (PS3.3 C.11.1, C.7.6.3.1.2): stored values → modality LUT or rescale → window → MONOCHROME1
inverted → [0, 1]. pydicom does not invert MONOCHROME1 by itself. Values stay at full depth until the end.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut

from excise.common.errors import DataError

PIPELINE = "pixels-1"
"""Part of the cache key: raise it when decoding changes."""


def decode(path: Path) -> NDArray[np.float32]:
    """Decode a single-frame grey image to float32 in [0, 1], shape (rows, columns).

    Raises
    ------
    DataError : the file is truncated, has no usable pixels, or is of a kind that is not supported; says which
    """
    try:
        dataset = pydicom.dcmread(path)
        stored = dataset.pixel_array
    except InvalidDicomError as error:
        raise DataError("not a DICOM file") from error
    except Exception as error:  # pydicom and its decoders raise many kinds; the scan must go on, with the reason kept
        raise DataError(f"pixels cannot be decoded ({type(error).__name__}): {error}") from error
    if dataset.get("NumberOfFrames", 1) not in (1, None):
        raise DataError(f"multi-frame image with {dataset.NumberOfFrames} frames; expected one")
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"{dataset.PhotometricInterpretation} image; expected grey (MONOCHROME1 or MONOCHROME2)")
    if stored.ndim != 2 or stored.size == 0:
        raise DataError(f"image of shape {stored.shape}; expected rows × columns")
    try:
        values = apply_modality_lut(stored, dataset).astype(np.float64)
        low, high = _window(dataset, values)
    except Exception as error:  # a rescale or a window that is empty or no number raises many kinds too
        raise DataError(f"rescale or window cannot be used ({type(error).__name__}): {error}") from error
    if not np.isfinite(values).all():
        raise DataError("rescaled values are not finite")
    image = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        image = 1 - image
    return image.astype(np.float32)


def _window(dataset: Dataset, values: NDArray[np.float64]) -> tuple[float, float]:
    """The rescaled values that become 0 and 1: the file's window (PS3.3 C.11.2.1.2), or the image's own range."""
    first = [np.atleast_1d(dataset.get(key))[0] for key in ("WindowCenter", "WindowWidth")]
    if all(value not in (None, "") for value in first):  # scanners leave them empty
        center, width = map(float, first)
        if width >= 1 and math.isfinite(center) and math.isfinite(width):
            return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return float(values.min()), float(values.max())
