"""Distance to the retrained model, by hand and in its bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch import Generator

from excise.simulations.judging.distance import Accuracies, divergence, tow

_shares = st.floats(0, 1)
_accuracies = st.builds(Accuracies, _shares, _shares, _shares)


def test_identical_and_disjoint() -> None:
    one, other = torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 50.0]])
    assert divergence(one, one) == 0
    assert divergence(one, other) == pytest.approx(1, abs=1e-9)
    assert divergence(torch.cat([one, one]), torch.cat([one, other])) == pytest.approx(0.5, abs=1e-9)


@given(
    seed=st.integers(0, 2**16), images=st.integers(1, 20), classes=st.integers(2, 6), scale=st.sampled_from([0.1, 1.0, 30.0])
)
def test_divergence_is_half_the_sum_of_two_relative_entropies(seed: int, images: int, classes: int, scale: float) -> None:
    generator = Generator().manual_seed(seed)
    a, b = (scale * torch.randn(images, classes, generator=generator) for _ in range(2))
    p, q = (logits.double().softmax(1).numpy() for logits in (a, b))
    got = divergence(a, b)
    assert 0 <= got <= 1
    # Not scipy's `jensenshannon`: its root of what rounding makes negative is NaN.
    m = (p + q) / 2
    wanted = (rel_entr(p, m) + rel_entr(q, m)).sum(1).mean() / (2 * np.log(2))
    assert got == pytest.approx(float(wanted), abs=1e-7)
    assert got == pytest.approx(divergence(b, a), abs=1e-12)
    assert divergence(a, a + 3) == pytest.approx(0, abs=1e-9)  # a shift of all logits changes no output


def test_divergence_refuses() -> None:
    a = torch.zeros(2, 3)
    for bad, message in ((torch.zeros(3, 3), r"\(2, 3\) and \(3, 3\)"), (a[:0], "got none"), (a / 0, "NaN or infinity for 2")):
        with pytest.raises(ValueError, match=message):
            divergence(a, bad)


def test_tow_by_hand() -> None:
    retrained = Accuracies(0.5, 0.9, 0.8)
    assert tow(retrained, retrained) == 1
    assert tow(Accuracies(0.7, 0.8, 0.85), retrained) == pytest.approx(0.8 * 0.9 * 0.95)
    assert tow(Accuracies(1.0, 0.9, 0.8), Accuracies(0.0, 0.9, 0.8)) == 0


@given(a=_accuracies, b=_accuracies)
def test_tow_is_symmetric_and_bounded(a: Accuracies, b: Accuracies) -> None:
    assert tow(a, b) == tow(b, a)
    assert 0 <= tow(a, b) <= 1 - abs(a.forget - b.forget) + 1e-12


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_accuracies_refuse(bad: float) -> None:
    with pytest.raises(ValueError, match="retain accuracy"):
        Accuracies(0.5, bad, 0.5)
