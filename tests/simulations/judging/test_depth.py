"""A fresh head tells a model that forgot in its head alone from one whose features never knew."""

from __future__ import annotations

import math

import numpy as np
import pytest

from excise.simulations.judging.checks import Floats
from excise.simulations.judging.depth import linear_probe


def features(images: int, knows: bool, seed: int) -> tuple[Floats, np.ndarray]:
    """Of three classes, far apart; a model that does not know class 2 puts its images anywhere among the others."""
    rng = np.random.default_rng(seed)
    y = np.arange(images) % 3
    centre = 8 * np.eye(3)[y]
    if not knows:
        centre[y == 2] = 8 * np.eye(3)[rng.integers(2, size=int((y == 2).sum()))]
    return np.c_[centre + rng.normal(size=(images, 3)), rng.normal(size=(images, 5))], y


def test_head_only_forgetting_is_caught() -> None:
    """The features of a model whose head alone was changed still tell the class; a retrained model's do not."""
    kept, lost = ((features(300, knows, 0), features(150, knows, 1)) for knows in (True, False))
    forget = kept[1][1] == 2
    hidden, retrained = (linear_probe(fitted, judged, forget) for fitted, judged in (kept, lost))
    assert hidden.forget > 0.97
    assert hidden.others > 0.97
    assert retrained.forget < 0.65  # three balanced classes, of which the third lies within the first two
    assert linear_probe(*kept, forget) == hidden


def test_all_forget() -> None:
    fitted, judged = features(60, True, 0), features(30, True, 1)
    got = linear_probe(fitted, judged, np.ones(30, dtype=bool))
    assert got.forget > 0.9
    assert math.isnan(got.others)


def test_rare_class_is_not_given_up() -> None:
    """Classes weigh alike: of two that overlap, one twenty times as rare, half-way between them is still the border."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], (1000, 50))
    fitted, judged = ((rng.normal(2.0 * y)[:, None], y) for _ in range(2))
    got = linear_probe(fitted, judged, y == 1)
    assert got.forget > 0.7  # Φ(1) = 0.84; without the weights less than a half
    assert got.others > 0.7


def test_refuses() -> None:
    x, y = features(12, True, 0)
    forget = y == 2
    for fitted, judged, of, message in (
        ((x[:0], y[:0]), (x, y), forget, "fitted images, features: expected at least 1"),
        ((x, y[:5]), (x, y), forget, r"expected 12 classes as integers, got int64 \(5,\)"),
        ((x, y.astype(float)), (x, y), forget, "got float64"),
        ((x, np.zeros_like(y)), (x, y), forget, "at least two classes, got class 0 alone"),
        ((x, y), (x[:, :4], y), forget, "features of one model, got 8 and 4"),
        ((x, y), (x * np.nan, y), forget, "judged images, features: expected finite"),
        ((x, y), (x, y), forget & False, "at least one true"),
        ((x, y), (x, y), forget[:3], r"got \(3,\)"),
        ((x, y), (x, y), y, "a bool of each of 12"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_probe(fitted, judged, of)
