"""Metrics on cases whose answer is known without them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from excise.common.metrics import (
    accuracy,
    calibration_error,
    jensen_shannon,
    membership_auc,
    pooled_quantiles,
    tug_of_war,
)

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 3.0], [5.0, 1.0, 3.0]])


def test_accuracy() -> None:
    assert accuracy(LOGITS, torch.tensor([0, 1, 2, 2])) == 0.75
    assert math.isnan(accuracy(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)))


# --- membership ------------------------------------------------------------------------------------------------------------


def test_auc_at_its_ends() -> None:
    low, high = np.array([0.1, 0.2], np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    assert membership_auc(low, high) == 1
    assert membership_auc(high, low) == 0
    assert membership_auc(low, low) == 0.5
    assert membership_auc(np.zeros(3, np.float32), np.zeros(5, np.float32)) == 0.5


_losses = st.lists(st.sampled_from([0.0, 0.1, 0.1, 0.5, 2.0]) | st.floats(0, 10, width=32), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(members=_losses, others=_losses)
def test_auc_counts_pairs(members: list[float], others: list[float]) -> None:
    m, o = np.array(members, np.float32), np.array(others, np.float32)
    pairs = sum(float(a < b) + 0.5 * float(a == b) for a in m for b in o)
    assert membership_auc(m, o) == pytest.approx(pairs / (len(m) * len(o)))


def test_auc_needs_both_sides() -> None:
    one, none = np.ones(1, np.float32), np.empty(0, np.float32)
    with pytest.raises(ValueError, match="got 0 and 1"):
        membership_auc(none, one)
    with pytest.raises(ValueError, match="got 1 and 0"):
        membership_auc(one, none)


# --- pooled quantiles ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(60, 400), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    shift=st.floats(0, 3),
)
def test_pooled_quantiles_are_those_of_the_pooled_data(sizes: list[int], seed: int, shift: float) -> None:
    """Compared as levels: the share of the pooled data below a reported quantile is near its level."""
    points = 64
    levels = np.linspace(0, 1, points)
    rng = np.random.default_rng(seed)
    data = [rng.exponential(size=n) + shift * k for k, n in enumerate(sizes)]
    reports = [(np.quantile(values, levels), len(values)) for values in data]
    pooled = np.sort(np.concatenate(data))
    got = pooled_quantiles(reports, levels).numpy()
    assert got.shape == (points,)
    assert (np.diff(got) >= 0).all()
    shares = np.searchsorted(pooled, got, side="right") / len(pooled)
    # each site's points stand for 1/64 of its images, and a small site's steps are 1/60
    assert np.abs(shares - levels).max() <= 1 / points + 1 / 60
    assert (got[0], got[-1]) == (pooled[0], pooled[-1])


def test_pooled_quantiles_weigh_by_images() -> None:
    low, high = np.full(5, 1.0), np.full(5, 2.0)
    levels = np.array([0.25, 0.75, 0.95])
    assert pooled_quantiles([(low, 90), (high, 10)], levels).tolist() == [1, 1, 2]
    assert pooled_quantiles([(low, 10), (high, 90)], levels).tolist() == [2, 2, 2]
    assert pooled_quantiles([(high, 10), (low, 90)], levels).tolist() == [1, 1, 2]
    assert pooled_quantiles([(low, 10), (high, 0)], levels).tolist() == [1, 1, 1]


def test_pooled_quantiles_need_images() -> None:
    for sites in ([], [(np.array([1.0, 2.0]), 0)]):
        with pytest.raises(ValueError, match="no site"):
            pooled_quantiles(sites, np.array([0.5]))


# --- distances to the retrained model --------------------------------------------------------------------------------------


def test_tug_of_war() -> None:
    assert tug_of_war(0, 0, 0) == 1
    assert tug_of_war(0.5, 0, 0) == 0.5
    assert tug_of_war(-0.5, 0.2, -0.1) == pytest.approx(0.5 * 0.8 * 0.9)
    assert tug_of_war(0, 1, 0) == 0


def test_jensen_shannon() -> None:
    p, q = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert jensen_shannon(p, p) == pytest.approx(0, abs=1e-9)
    assert jensen_shannon(p, q) == pytest.approx(math.log(2), abs=1e-9)
    half = torch.tensor([[0.5, 0.5]])
    expected = 0.5 * math.log(1 / 0.75) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert jensen_shannon(p, half) == pytest.approx(expected, abs=1e-9)
    assert jensen_shannon(half, p) == pytest.approx(expected, abs=1e-9)
    assert jensen_shannon(torch.cat([p, p]), torch.cat([p, q])) == pytest.approx(math.log(2) / 2, abs=1e-9)


@given(seed=st.integers(0, 2**16), images=st.integers(1, 200), classes=st.integers(2, 5), bins=st.sampled_from([1, 10, 15]))
def test_calibration_error_is_torchmetrics(seed: int, images: int, classes: int, bins: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, classes, generator=drawn)
    y = torch.randint(classes, (images,), generator=drawn)
    expected = multiclass_calibration_error(logits.softmax(1), y, classes, n_bins=bins)
    assert calibration_error(logits, y, bins) == pytest.approx(float(expected), abs=1e-6)


def test_calibration_error() -> None:
    sure = torch.tensor([0.8, 0.2]).log().expand(10, 2)  # says 0.8 ten times
    for right, expected in ((8, 0.0), (6, 0.2), (10, 0.2), (0, 0.8)):
        y_N = torch.tensor([0] * right + [1] * (10 - right))
        assert calibration_error(sure, y_N) == pytest.approx(expected, abs=1e-6)
    two_bins = torch.cat([sure, torch.tensor([0.6, 0.4]).log().expand(10, 2)])
    y_N = torch.tensor([0] * 6 + [1] * 4 + [0] * 8 + [1] * 2)  # 0.2 too sure, then 0.2 too shy: must not cancel
    assert calibration_error(two_bins, y_N) == pytest.approx(0.2, abs=1e-6)
