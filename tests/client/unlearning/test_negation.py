"""The step away: what training on the forget images changes is subtracted, statistics stay, and who must not step does not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.client.unlearning import negation
from excise.client.unlearning.inference import predict
from excise.client.unlearning.local import Diverged
from excise.client.unlearning.negation import BATCH, STEPS, images_of_step_away, is_step_away, step_away
from excise.client.unlearning.objective import label_loss
from excise.common.settings import LocalSettings, UnlearningSettings
from excise.common.weights import snapshot

SETTINGS = UnlearningSettings(negation=4.0, local=LocalSettings(rounds=2))


def _student(outputs: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, outputs)).eval()


def _images(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, generator=Generator().manual_seed(1)), torch.arange(n) % 2


def _away(student: nn.Module, x: Tensor, y_N: Tensor, scale: float = 4.0, clip_norm: float = 5.0) -> int:
    return step_away(student, x, y_N, scale, clip_norm, Generator().manual_seed(2)).passes


def _loss(student: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(label_loss(predict(student, x), y))


def test_what_training_changes_is_subtracted() -> None:
    """Against SGD written out, on two batches."""
    x, y_N = _images(BATCH + 32)
    student, slow = _student(), _student().train()
    start = [parameter.detach().clone() for parameter in slow.parameters()]
    speed = [torch.zeros_like(parameter) for parameter in start]
    for rows in torch.randperm(len(x), generator=Generator().manual_seed(2)).tensor_split(2):
        gradients = torch.autograd.grad(F.cross_entropy(slow(x[rows]), y_N[rows]), list(slow.parameters()))
        factor = min(1.0, 0.3 / (float(torch.cat([g.flatten() for g in gradients]).norm()) + 1e-6))
        with torch.no_grad():
            for parameter, v, gradient in zip(slow.parameters(), speed, gradients, strict=True):
                v.mul_(0.9).add_(factor * gradient)
                parameter.sub_(0.05 * v)
    assert _away(student, x, y_N, scale=3.0, clip_norm=0.3) == len(x)
    for found, trained, was in zip(student.parameters(), slow.parameters(), start, strict=True):
        torch.testing.assert_close(found.detach(), was - 3.0 * (trained.detach() - was))


def test_statistics_and_modes_stay_and_the_forget_images_become_less_sure() -> None:
    x, y_N = _images(40)
    student, before = _student(), snapshot(_student())
    loss = _loss(student, x, y_N)
    _away(student, x, y_N)
    assert not student.training
    after = snapshot(student)
    assert not torch.equal(after["3.weight"], before["3.weight"])
    assert all(torch.equal(after[name], before[name]) for name in after if "running" in name or "tracked" in name)
    assert _loss(student, x, y_N) > loss


def test_labels_are_stepped_away_from_as_well() -> None:
    x, y_N = _images(40)
    labels_NL = F.one_hot(y_N, 3).float()
    student = _student(3)
    loss = _loss(student, x, labels_NL)
    _away(student, x, labels_NL)
    assert _loss(student, x, labels_NL) > loss


@pytest.mark.parametrize(("images", "expected"), [(2, 2), (BATCH + 1, BATCH + 1), (STEPS * BATCH + 1, STEPS * BATCH)])
def test_at_most_four_batches_are_drawn_and_none_of_a_single_image(
    images: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(negation, "label_loss", lambda logits, y: sizes.append(len(y)) or label_loss(logits, y))
    x, y_N = _images(images)
    assert _away(_student(), x, y_N) == images_of_step_away(x) == sum(sizes) == expected
    assert len(sizes) <= STEPS
    assert min(sizes) >= 2


def test_large_images_come_in_smaller_batches() -> None:
    assert images_of_step_away(torch.zeros(9, 1, 128, 128, 128)) == 8
    assert images_of_step_away(torch.zeros(3, 1, 128, 128, 128)) == 3


@pytest.mark.parametrize(
    ("settings", "round_index", "images", "min_count", "expected"),
    [
        (SETTINGS, 0, 10, 10, True),
        (SETTINGS, 0, 9, 10, False),
        (SETTINGS, 0, 1, 1, False),
        (SETTINGS, 1, 10, 10, False),
        (SETTINGS.model_copy(update={"negation": 0.0}), 0, 10, 10, False),
        (UnlearningSettings(negation=4.0, local=LocalSettings(rounds=1)), 0, 10, 10, False),
    ],
)
def test_only_a_first_round_of_several_over_enough_images_is_a_step_away(
    settings: UnlearningSettings, round_index: int, images: int, min_count: int, expected: bool
) -> None:
    assert is_step_away(settings, round_index, torch.zeros(images, 3), min_count) is expected


def test_images_that_give_no_gradient_leave_the_student_as_it_came() -> None:
    x, y_N = _images(10)
    student, before = _student(), snapshot(_student())
    with pytest.raises(Diverged, match="faults in the images"):
        _away(student, x * math.nan, y_N)
    for name, tensor in snapshot(student).items():
        assert torch.equal(tensor, before[name])
