"""What every metric asks of its input, said in one place: an answer to the wrong question looks like any other number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def check_outputs(logits_NC: Tensor, y_N: Tensor, name: str = "images") -> None:
    """Refuse logits and labels that do not fit together.

    Parameters
    ----------
    logits_NC : floating point (N, C), N at least 1, C at least 2, finite
    y_N : classes, integers (N,) in [0, C)
    name : of the set of images, for the message

    Raises
    ------
    ValueError : one of these does not hold
    """
    check_logits(logits_NC, name)
    if y_N.ndim != 1 or len(y_N) != len(logits_NC):
        raise ValueError(f"{name}: expected {len(logits_NC)} labels, one for each row of logits, got shape {tuple(y_N.shape)}")
    if y_N.is_floating_point() or y_N.is_complex():
        raise ValueError(f"{name}: expected classes as integers, got {y_N.dtype}")
    low, high, classes = int(y_N.min()), int(y_N.max()), logits_NC.shape[1]
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: expected classes from 0 to {classes - 1}, got {low} to {high}")


def check_logits(logits_NC: Tensor, name: str = "images") -> None:
    """Refuse what is no finite floating-point (N, C) with N at least 1 and C at least 2; raises ValueError."""
    if logits_NC.ndim != 2 or not logits_NC.is_floating_point():
        raise ValueError(f"{name}: expected floating-point logits (N, C), got {logits_NC.dtype} {tuple(logits_NC.shape)}")
    if len(logits_NC) == 0:
        raise ValueError(f"{name}: expected at least one image, got none")
    if logits_NC.shape[1] < 2:
        raise ValueError(f"{name}: expected logits of at least two classes, got {logits_NC.shape[1]}")
    if not bool(logits_NC.isfinite().all()):
        bad = int((~logits_NC.isfinite()).any(1).sum())
        raise ValueError(f"{name}: expected finite logits, got NaN or infinity for {bad} of {len(logits_NC)} images")


def finite(values: ArrayLike, name: str, least: int = 1, ndim: int = 1) -> Floats:
    """`values` as float64 with `ndim` axes.

    Raises
    ------
    ValueError : another number of axes, a first axis shorter than `least`, or a number that is not finite
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or len(array) < least:
        raise ValueError(f"{name}: expected at least {least} along the first of {ndim} axes, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got {int((~np.isfinite(array)).sum())} that are not")
    return array


def share(value: float, name: str) -> float:
    """`value` if it is in [0, 1]; else ValueError."""
    if not 0 <= value <= 1:  # NaN too
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return value
