"""Ordinary training: learns, repeats itself exactly, and does not stumble over a last batch of one image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from excise.client.training import train_locally
from excise.common.metrics import accuracy
from excise.common.settings import TrainingSettings
from excise.common.weights import difference, digest, norm, snapshot


def _seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _model() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    generator = _seeded(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def _toy(n: int = 40) -> tuple[Tensor, Tensor]:
    """Class 1 is the brighter one; images of 2×2."""
    y_N = torch.arange(n) % 2
    x = 0.3 + 0.4 * y_N[:, None, None, None] + 0.05 * torch.randn(n, 1, 2, 2, generator=_seeded(1))
    return x.clamp(0, 1), y_N


SETTINGS = TrainingSettings(rounds=4, epochs=1, batch_size=8, learning_rate=0.1, augment=False)


def test_learns_a_toy() -> None:
    model, (x, y_N) = _model(), _toy()
    first, passes = train_locally(model, x, y_N, SETTINGS, 0, _seeded())
    assert passes == 40
    last, passes = train_locally(model, x, y_N, SETTINGS.model_copy(update={"epochs": 20}), 0, _seeded())
    assert passes == 800
    assert last < 0.1 < first
    assert accuracy(model(x), y_N) == 1
    assert not model.training


@pytest.mark.parametrize("augment", [False, True])
def test_same_seed_same_model(augment: bool) -> None:
    def run(seed: int) -> str:
        model = _model()
        before = torch.get_rng_state()
        train_locally(model, *_toy(), SETTINGS.model_copy(update={"augment": augment}), 0, _seeded(seed))
        assert torch.equal(torch.get_rng_state(), before)
        return digest(model.state_dict())

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_batch_of_one_is_skipped() -> None:
    x, y_N = _toy(9)  # 8 and 1: batch norm refuses a single value per channel
    loss, passes = train_locally(_model(), x, y_N, SETTINGS, 0, _seeded())
    assert math.isfinite(loss)
    assert passes == 8


def test_a_single_image_trains_nothing() -> None:
    model = _model()
    before = digest(model.state_dict())
    loss, passes = train_locally(model, *_toy(1), SETTINGS, 0, _seeded())
    assert math.isnan(loss)
    assert passes == 0
    assert digest(model.state_dict()) == before


def test_step_size_falls_along_a_cosine() -> None:
    moved = []
    for round_index in range(4):
        model = _model()
        before = snapshot(model)
        train_locally(model, *_toy(8), SETTINGS, round_index, _seeded())  # one batch, one step
        moved.append(norm(difference(snapshot(model), before)))
    expected = [(1 + math.cos(math.pi * r / 4)) / 2 for r in range(4)]
    assert [m / moved[0] for m in moved] == pytest.approx(expected, rel=1e-3)


def test_clipping_bounds_a_step() -> None:
    model = _model()
    before = snapshot(model)
    local = SETTINGS.model_copy(update={"clip_norm": 1e-3, "weight_decay": 0.0})
    train_locally(model, *_toy(8), local, 0, _seeded())
    assert norm(difference(snapshot(model), before)) == pytest.approx(0.1 * 1e-3, rel=1e-2)


class _Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return self.bias.expand(len(x), 2)


def test_every_image_is_shown_once_a_pass() -> None:
    model = _Recorder()
    x = torch.arange(20.0)[:, None, None, None].expand(20, 1, 2, 2) / 20
    train_locally(model, x, torch.zeros(20).long(), SETTINGS.model_copy(update={"epochs": 2}), 0, _seeded())
    assert [len(batch) for batch in model.seen] == [8, 8, 4] * 2
    passes = torch.cat(model.seen)[:, 0, 0, 0].reshape(2, 20)
    assert torch.equal(passes.sort(dim=1).values, x[:, 0, 0, 0].expand(2, 20))
    assert not torch.equal(passes[0], passes[1])


def test_augmentation_shows_another_view_every_time() -> None:
    model = _Recorder()
    x = torch.rand(1, 1, 8, 8, generator=_seeded()).expand(16, 1, 8, 8)
    train_locally(model, x, torch.zeros(16).long(), SETTINGS.model_copy(update={"augment": True}), 0, _seeded())
    seen = torch.cat(model.seen)
    assert seen.shape == x.shape
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    assert len(seen.flatten(1).unique(dim=0)) == 16
