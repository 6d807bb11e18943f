"""Bootstrap intervals: their coverage, their seeds, and that pairing helps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.simulations.judging.bootstrap import Interval, difference_interval, mean_interval


@pytest.mark.parametrize(("values", "low", "high"), [(40, 0.91, 0.97), (3, 0.66, 0.82)])
def test_coverage_on_a_normal_sample(values: int, low: float, high: float) -> None:
    """Near 95 % for many values, and three in four for three, as the module warns."""
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(2, 3, values), resamples=400, seed=i) for i in range(600)]
    covered = np.mean([one.low <= 2 <= one.high for one in intervals])
    assert low < covered < high


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_interval_is_ordered_within_the_values_and_seeded(values: list[float], seed: int) -> None:
    got = mean_interval(values, resamples=50, seed=seed)
    assert min(values) - 1e-9 <= got.low <= got.mean <= got.high <= max(values) + 1e-9
    assert got == mean_interval(values, resamples=50, seed=seed)
    wide = mean_interval(values, resamples=50, seed=seed, level=0.99)
    assert wide.low <= got.low <= got.high <= wide.high


def test_one_value_decides_nothing() -> None:
    got = mean_interval([0.7])
    assert got == Interval(0.7, 0.7, 0.7, 1)
    assert not got.decided


def test_pairing_takes_the_seed_out() -> None:
    """Seeds move both methods by far more than they differ."""
    rng = np.random.default_rng(1)
    seed = 10 * rng.normal(size=8)
    ours, theirs = seed + 0.5 + 0.1 * rng.normal(size=8), seed
    paired = difference_interval(ours, theirs)
    assert paired.decided
    assert paired.low < 0.5 < paired.high
    assert mean_interval(ours).low < mean_interval(theirs).high  # unpaired, they overlap
    back = difference_interval(theirs, ours)
    assert (back.low, back.mean, back.high) == pytest.approx((-paired.high, -paired.mean, -paired.low), abs=1e-12)
    assert not difference_interval(ours, ours).decided


def test_refuses() -> None:
    with pytest.raises(ValueError, match="values over seeds: expected at least 1"):
        mean_interval([])
    with pytest.raises(ValueError, match="finite numbers, got 1"):
        mean_interval([1.0, np.nan])
    with pytest.raises(ValueError, match="values of the same seeds, got 2 and 3"):
        difference_interval([1, 2], [1, 2, 3])
    for level, resamples in ((0.0, 10), (1.0, 10), (0.9, 0)):
        with pytest.raises(ValueError, match="expected 0 < level < 1"):
            mean_interval([1.0], level=level, resamples=resamples)
