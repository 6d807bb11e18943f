"""One image as a source gives it: ready to be prepared, and a fingerprint of what was stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decoded:
    """An image of a source.

    Attributes
    ----------
    image : float32 in [0, 1], rows × columns or rows × columns × 3; a volume has slices before its rows
    pixels : its `fingerprint`
    """

    image: NDArray[np.float32]
    pixels: str


def fingerprint(*stored: NDArray[Any]) -> str:
    """SHA-256 of stored values, 64 hexadecimal digits.

    Taken before any rescale, window or colour setting, and of whole numbers whatever their type: another window, another
    lossless transfer syntax or another setting of the site does not change it. What was forgotten is known by it under other
    identifiers too, so a change here makes all registers useless.
    """
    sha = hashlib.sha256()
    for values in stored:
        canonical = np.ascontiguousarray(values, _type_for(values))
        sha.update(f"{canonical.dtype.str}{canonical.shape}".encode())
        sha.update(canonical.data)
    return sha.hexdigest()


def _type_for(values: NDArray[Any]) -> str:
    """The smaller of two types that holds whole numbers as they are: hashing is a good part of the time of an image."""
    if values.dtype.kind not in "biu":
        return "<f4"
    return "<u2" if values.size and values.min() >= 0 and values.max() < 2**16 else "<i4"
