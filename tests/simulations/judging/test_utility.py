"""Utility against torchmetrics, against counting, and where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torchmetrics.functional.classification import multiclass_auroc, multiclass_calibration_error, multiclass_recall

from excise.simulations.judging.utility import auroc, by_group, utility, worst_site


def drawn(seed: int, images: int, classes: int) -> tuple[Tensor, Tensor]:
    """Random logits and labels, each class present."""
    generator = Generator().manual_seed(seed)
    y = torch.cat([torch.arange(classes), torch.randint(classes, (images,), generator=generator)])
    return 2 * torch.randn(len(y), classes, generator=generator), y


@settings(max_examples=50)
@given(seed=st.integers(0, 2**16), images=st.integers(0, 60), classes=st.integers(2, 5))
def test_utility_is_torchmetrics(seed: int, images: int, classes: int) -> None:
    logits, y = drawn(seed, images, classes)
    got, p = utility(logits, y), logits.softmax(1)
    assert got.images == len(y)
    assert got.accuracy == pytest.approx(float((logits.argmax(1) == y).double().mean()), abs=1e-6)
    assert got.balanced_accuracy == pytest.approx(float(multiclass_recall(p, y, classes, average="macro")), abs=1e-6)
    assert got.auroc == pytest.approx(float(multiclass_auroc(p, y, classes, average="macro")), abs=1e-6)
    assert got.calibration_error == pytest.approx(float(multiclass_calibration_error(p, y, classes, n_bins=15)), abs=1e-6)


def test_calibrated_and_overconfident() -> None:
    """Right as often as it says, and right half as often as it is sure."""
    generator = Generator().manual_seed(0)
    p = torch.rand(40_000, generator=generator)
    y = (torch.rand(40_000, generator=generator) < p).long()
    calibrated = torch.stack([1 - p, p], 1).clamp_min(1e-9).log()
    assert utility(calibrated, y).calibration_error < 0.01
    sure = torch.tensor([20.0, 0.0]).expand(100, 2)
    assert utility(sure, torch.tensor([0, 1] * 50)).calibration_error == pytest.approx(0.5, abs=1e-6)


def test_auroc_of_a_sure_model_does_not_tie() -> None:
    """All probabilities round to 1 in float32, yet the order is perfect."""
    logits = torch.tensor([[90.0, 0.0], [80.0, 0.0], [60.0, 0.0], [50.0, 0.0]])
    y = torch.tensor([0, 0, 1, 1])
    assert logits.softmax(1)[:, 0].eq(1).all()
    assert auroc(logits, y) == 1
    assert auroc(logits, 1 - y) == 0


def test_one_class_alone() -> None:
    logits, y = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 0])
    with pytest.raises(ValueError, match="at least two classes, got class 0 alone"):
        auroc(logits, y)
    got = utility(logits, y)
    assert math.isnan(got.auroc)
    assert (got.accuracy, got.balanced_accuracy) == (0.5, 0.5)


def test_by_class_and_by_site() -> None:
    logits, y = drawn(1, 50, 3)
    of_class = by_group(logits, y, y.tolist())
    assert set(of_class) == {0, 1, 2}
    assert sum(of.images for of in of_class.values()) == len(y)
    mean = sum(of.accuracy for of in of_class.values()) / 3
    assert utility(logits, y).balanced_accuracy == pytest.approx(mean, abs=1e-6)
    sites = ["b", "a"] * 26 + ["c"]
    assert list(by_group(logits, y, sites)) == ["b", "a", "c"]
    assert by_group(logits, y, sites)["a"] == utility(logits[1:52:2], y[1:52:2])
    with pytest.raises(ValueError, match="a group for each of 53 images, got 2"):
        by_group(logits, y, ["a", "b"])


def test_worst_site() -> None:
    worst = worst_site({"a": 0.9, "b": 0.7, "c": 0.8}, {"a": 0.8, "b": 0.75, "c": 0.8})
    assert (worst.lowest, worst.value, worst.most_harmed) == ("b", 0.75, "a")
    assert (worst.change, worst.harm) == pytest.approx((0.05, -0.1))
    with pytest.raises(ValueError, match="the same sites"):
        worst_site({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match="at least one"):
        worst_site({}, {})
    with pytest.raises(ValueError, match="got none of a"):
        worst_site({"a": math.nan, "b": 1.0}, {"a": 1.0, "b": 1.0})
