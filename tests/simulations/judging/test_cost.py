"""Costs and their ratios; nothing is divided by zero without a word."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.simulations.judging.cost import Cost, ratios, shared_ratios

RETRAINING = Cost(
    images=1000, seconds=10.0, rounds=40, bytes_up={"b": 60, "a": 40}, bytes_down={"a": 50, "b": 50}, peak_bytes=1e6
)


def test_ratios() -> None:
    cost = Cost(images=100, seconds=5.0, rounds=4, bytes_up={"a": 4, "b": 12}, bytes_down={"a": 5, "b": 10}, peak_bytes=2e6)
    assert ratios(cost, RETRAINING) == {
        "images": 0.1,
        "seconds": 0.5,
        "rounds": 0.1,
        "bytes_up": 0.16,
        "bytes_up/a": 0.1,
        "bytes_up/b": 0.2,
        "bytes_down": 0.15,
        "bytes_down/a": 0.1,
        "bytes_down/b": 0.2,
        "peak_bytes": 2.0,
    }


def test_what_was_not_measured_has_no_ratio() -> None:
    assert ratios(Cost(images=1), Cost(images=4)) == {"images": 0.25}
    assert ratios(Cost(), Cost()) == {}
    with pytest.raises(ValueError, match="measure the same, got of one alone: rounds, seconds"):
        ratios(Cost(images=1, seconds=1), Cost(images=4, rounds=3))
    with pytest.raises(ValueError, match=r"of one alone: bytes_up$"):
        ratios(Cost(bytes_up={"a": 1}), Cost())


def test_nothing_over_nothing_is_alike_and_something_over_nothing_is_refused() -> None:
    assert ratios(Cost(rounds=0), Cost(rounds=0)) == {"rounds": 1.0}
    with pytest.raises(ValueError, match="used nothing of: images, rounds; measure it"):
        ratios(Cost(images=1, rounds=1), Cost(images=0, rounds=0))


def test_a_site_that_leaves_is_not_asked_to_retrain() -> None:
    got = ratios(Cost(bytes_up={"a": 10, "gone": 10}), Cost(bytes_up={"a": 40, "new": 40}))
    assert got == {"bytes_up": 0.25, "bytes_up/a": 0.25, "bytes_up/gone": math.inf, "bytes_up/new": 0.0}


def test_of_a_method_in_one_place_what_both_measured_is_told() -> None:
    central = Cost(images=100, seconds=20.0, peak_bytes=0)
    assert shared_ratios(central, RETRAINING) == {"images": 0.1, "seconds": 2.0, "peak_bytes": 0.0}
    assert shared_ratios(RETRAINING, RETRAINING) == dict.fromkeys(RETRAINING.amounts(), 1.0)
    assert shared_ratios(Cost(peak_bytes=5, rounds=0), Cost(peak_bytes=0, rounds=0)) == {"rounds": 1.0}


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_amounts_are_amounts(bad: float) -> None:
    with pytest.raises(ValueError, match="cost of seconds: expected a finite amount of at least 0"):
        Cost(seconds=bad)
    with pytest.raises(ValueError, match="cost of bytes_up"):
        Cost(bytes_up={"a": bad})


_amounts = st.floats(0.001, 1e12)


@given(a=_amounts, b=_amounts)
def test_ratios_are_inverse(a: float, b: float) -> None:
    there, back = ratios(Cost(images=a), Cost(images=b)), ratios(Cost(images=b), Cost(images=a))
    assert there["images"] * back["images"] == pytest.approx(1)
