"""Label shift against posteriors that are known, and how far apart two mixes of classes are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from excise.common.class_mix import ClassMix, shifted_losses


def posterior(x_N: np.ndarray, prior: Mapping[int, float]) -> np.ndarray:
    """Probabilities (N, C) of classes whose images are normal around 0, 1, 2, …, met as often as `prior` says."""
    joint = np.stack([n * np.exp(-((x_N - c) ** 2) / 2) for c, n in sorted(prior.items())], axis=1)
    return joint / joint.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("forget", "retain", "told"),
    [
        ({0: 500_000}, {0: 500_000, 1: 900_000}, (0, 1)),
        ({0: 100_000, 1: 300_000}, {0: 700_000, 1: 200_000}, (0, 1)),
        # Where one class of several becomes rarer: exact for that class.
        ({1: 800_000}, {0: 300_000, 1: 100_000, 2: 600_000}, (1,)),
    ],
)
def test_the_shift_turns_one_bayes_classifier_into_the_other(
    forget: dict[int, float], retain: dict[int, float], told: tuple[int, ...]
) -> None:
    x_N = np.linspace(-4, 6, 101)
    trained = {c: forget.get(c, 0) + n for c, n in retain.items()}
    mix = ClassMix(forget, retain)
    for c in told:
        losses_N = torch.from_numpy(-np.log(posterior(x_N, trained)[:, c]))
        expected_N = -np.log(posterior(x_N, retain)[:, c])
        found_N = shifted_losses(losses_N, mix.log_odds_shift(c)).numpy()
        np.testing.assert_allclose(found_N, expected_N, rtol=1e-4, atol=1e-5)


def test_of_several_classes_the_others_are_met_as_often_as_their_sum() -> None:
    mix = ClassMix({0: 400_000, 2: 100_000}, {0: 600_000, 1: 500_000, 2: 300_000})
    assert mix.log_odds_shift(0) == pytest.approx(math.log(0.6 / (800 / 900)), abs=1e-4)


def test_each_label_is_for_itself() -> None:
    mix = ClassMix({1: 300_000, 2: 300_000}, {0: 500_000, 1: 300_000, 2: 700_000, 3: 100_000}, multi_label=True)
    assert mix.log_odds_shift(1) == pytest.approx(math.log(0.5), abs=1e-4)
    assert mix.log_odds_shift(0) == pytest.approx(math.log(2), abs=1e-4)
    assert mix.log_odds_shift(2) == pytest.approx(math.log(0.7), abs=1e-4)
    assert mix.log_odds_shift(3) == pytest.approx(-math.log(0.7), abs=1e-4)


@pytest.mark.parametrize(
    ("forget", "retain"),
    [({}, {}), ({0: 50}, {}), ({0: 50, 1: 10}, {}), ({}, {0: 30, 1: 20}), ({1: 10}, {1: 90}), ({0: 10}, {0: 40})],
)
def test_what_is_not_known_shifts_nothing(forget: dict[int, float], retain: dict[int, float]) -> None:
    assert [ClassMix(forget, retain).log_odds_shift(c) for c in range(3)] == [0, 0, 0]


def test_a_class_that_is_gone_is_all_but_impossible() -> None:
    shift = ClassMix({0: 999}, {1: 4000}).log_odds_shift(0)
    assert shift == pytest.approx(math.log(1 / 1000))
    assert float(shifted_losses(torch.tensor([0.01], dtype=torch.float64), shift)) > 2


@given(st.floats(0, 1e4), st.floats(-20, 20))
def test_losses_stay_losses_and_can_be_shifted_back(loss: float, shift: float) -> None:
    there = shifted_losses(torch.tensor([loss], dtype=torch.float64), shift)
    assert 0 <= float(there) < math.inf
    assert (float(there) >= loss) == (shift <= 0) or float(there) == pytest.approx(loss)
    if 1e-3 < loss < 10:
        assert float(shifted_losses(there, -shift)) == pytest.approx(loss, rel=1e-6)


def test_no_loss_stays_none() -> None:
    assert shifted_losses(torch.zeros(3, dtype=torch.float64), -3.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("forget", "retain", "multi_label", "expected"),
    [
        ({0: 10}, {1: 30}, False, 1.0),
        ({0: 10, 1: 30}, {0: 100, 1: 300}, False, 0.0),
        ({0: 50}, {0: 100, 1: 300}, False, 0.75),
        ({0: 20, 1: 80, 2: 50, 3: 50}, {0: 70, 1: 30, 2: 50, 3: 50}, True, 0.5),
        ({}, {0: 5}, False, 0.0),
        ({0: 5}, {}, True, 0.0),
        ({}, {}, True, 0.0),
    ],
)
def test_distance(forget: dict[int, float], retain: dict[int, float], multi_label: bool, expected: float) -> None:
    assert ClassMix(forget, retain, multi_label).distance() == pytest.approx(expected)
