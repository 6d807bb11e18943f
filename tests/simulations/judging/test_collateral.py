"""The retain images nearest to the forget set, against sorting all distances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from excise.simulations.judging import collateral
from excise.simulations.judging.collateral import collateral_accuracy, nearest_retain


@given(seed=st.integers(0, 2**16), forget=st.integers(1, 6), retain=st.integers(1, 12), features=st.integers(1, 4))
def test_nearest_is_the_slow_way(seed: int, forget: int, retain: int, features: int) -> None:
    generator = Generator().manual_seed(seed)
    f, r = (torch.randint(-2, 3, (n, features), generator=generator).float() for n in (forget, retain))
    far = [min(float((one.double() - other.double()).norm()) for other in f) for one in r]
    expected = sorted(range(retain), key=lambda n: (round(far[n], 9), n))
    for count in range(1, retain + 1):
        assert nearest_retain(f, r, count).tolist() == expected[:count]


def test_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator().manual_seed(0)
    f, r = torch.randn(7, 5, generator=generator), torch.randn(50, 5, generator=generator)
    whole = nearest_retain(f, r, 20)
    monkeypatch.setattr(collateral, "AT_ONCE", 10)
    assert torch.equal(nearest_retain(f, r, 20), whole)


def test_over_unlearning_is_seen_nearby() -> None:
    """A model wrong on the neighbours of the forget set alone: 0.9 of the retain set, and nothing of what is near."""
    r = torch.arange(20.0)[:, None]
    near = nearest_retain(torch.tensor([[-1.0]]), r, 2)
    assert near.tolist() == [0, 1]
    y = torch.zeros(20, dtype=torch.int64)
    logits = torch.tensor([[1.0, 0.0]]).repeat(20, 1)
    logits[:2] = torch.tensor([0.0, 1.0])
    assert collateral_accuracy(logits, y, near) == 0
    assert collateral_accuracy(logits, y, torch.arange(20)) == pytest.approx(0.9)


def test_refuses() -> None:
    f = torch.zeros(2, 3)
    for forget, retain, count, message in (
        (f[:0], f, 1, r"finite features \(images, F\) of forget images"),
        (f, f[:0], 1, "of retain images"),
        (f / 0, f, 1, "finite features"),
        (f[0], f, 1, "forget images, got shape"),
        (f, torch.zeros(2, 4), 1, "one model, got 3 and 4"),
        (f, f, 0, "a count from 1 to 2 retain images, got 0"),
        (f, f, 3, "got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest_retain(forget, retain, count)
    for rows in ([], [2], [-1]):
        with pytest.raises(ValueError, match="rows from 0 to 1"):
            collateral_accuracy(f, torch.tensor([0, 1]), torch.tensor(rows, dtype=torch.int64))
