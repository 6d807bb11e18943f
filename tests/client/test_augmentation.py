"""Random views: of the same shape, in range, gentle, and the generator's alone."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from excise.client.augmentation import augment


def _images(n: int, channels: int = 1, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (5, 3, 16, 16), (4, 1, 12, 20)])
def test_shape_and_range(shape: tuple[int, int, int, int]) -> None:
    x = _images(*shape)
    view = augment(x, Generator().manual_seed(0))
    assert view.shape == x.shape
    assert view.dtype == torch.float32
    assert 0 <= float(view.min()) <= float(view.max()) <= 1
    assert bool(view.isfinite().all())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_extremes_stay_finite(value: float) -> None:
    view = augment(torch.full((8, 1, 16, 16), value), Generator().manual_seed(0))
    assert bool(view.isfinite().all())
    assert view[:, :, 8, 8].sub(value).abs().max() < 2e-3  # the middle stays inside the picture


def test_the_generator_alone_decides() -> None:
    x, before = _images(6), torch.get_rng_state()
    first = augment(x, Generator().manual_seed(3))
    torch.rand(5)
    torch.set_rng_state(before)
    assert torch.equal(first, augment(x, Generator().manual_seed(3)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, augment(x, Generator().manual_seed(4)))


def test_the_images_given_are_not_changed() -> None:
    x = _images(3)
    kept = x.clone()
    augment(x, Generator().manual_seed(0))
    assert torch.equal(x, kept)


def test_views_differ_within_a_batch_and_about_half_are_mirrored() -> None:
    x = torch.zeros(400, 1, 16, 16)
    x[..., 4:12, 1:6] = 1  # a bar on the left
    view = augment(x, Generator().manual_seed(0))
    assert len(view.flatten(1).unique(dim=0)) == 400
    on_the_right = (view[..., 8:].sum((1, 2, 3)) > view[..., :8].sum((1, 2, 3))).float().mean()
    assert 0.4 < float(on_the_right) < 0.6
