"""Several labels an image: each has its own boundary, in the search, in the targets and in the joint steps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.client.unlearning import boundary_search, unlearn
from excise.client.unlearning.boundary import path_losses
from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import (
    are_labels,
    boundary_losses,
    confidence,
    has_crossed,
    place_of,
    sought_labels,
    strata,
)
from excise.client.unlearning.objective import forget_loss, retain_loss
from excise.client.unlearning.targets import make_targets
from excise.common.settings import LocalSettings, SearchSettings, TargetSettings, UnlearningSettings

SIDE = 8
SEARCH = SearchSettings(epsilon=0.3, eta=0.1, max_steps=12, stop="crossed", batch_size=4)


class Quadrants(nn.Module):
    """Label 0: the upper half is bright; label 1: the left half is. Linear, so boundaries are known."""

    def __init__(self, sharpness: float = 40.0) -> None:
        super().__init__()
        weight = torch.zeros(2, SIDE, SIDE)
        weight[0, : SIDE // 2], weight[1, :, : SIDE // 2] = 1, 1
        self.head = nn.Linear(SIDE * SIDE, 2)
        self.head.weight.data = sharpness * weight.flatten(1) / (SIDE * SIDE / 2)
        self.head.bias.data.fill_(-sharpness / 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


def images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of all four combinations of the two labels."""
    generator = Generator().manual_seed(seed)
    y_NL = torch.stack([torch.arange(n) % 2, torch.arange(n) // 2 % 2], dim=1).float()
    upper, left = torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    upper[: SIDE // 2], left[:, : SIDE // 2] = 1, 1
    shift_NL = 0.16 * (2 * y_NL - 1)
    x = 0.5 + shift_NL[:, 0, None, None] * upper + shift_NL[:, 1, None, None] * left
    x = x - (shift_NL.sum(1) * 0.5)[:, None, None] * (upper * left)  # where both halves meet
    return (x + 0.05 * (torch.rand(n, SIDE, SIDE, generator=generator) - 0.5)).clamp(0, 1).unsqueeze(1), y_NL


def test_classes_and_labels_are_told_apart() -> None:
    assert are_labels(torch.tensor([[0.0, 1.0]]))
    assert not are_labels(torch.tensor([0, 1]))
    for neither in (torch.tensor([[0.0, 0.5]]), torch.tensor([[0, 1]]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"expected one class an image, int64 \(N,\), or labels"):
            are_labels(neither)


def test_one_label_is_a_problem_of_two_classes() -> None:
    x, y_NL = images(8)
    model = Quadrants()

    class OneLabel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = model(x)[:, :1]
            return logits

    class TwoClasses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = model(x)[:, :1]
            return torch.cat([torch.zeros_like(logits), logits], dim=1)

    for settings in (SEARCH, SEARCH.model_copy(update={"stop": "confidence", "kappa": 0.3})):
        one = boundary_search(OneLabel(), x, y_NL[:, :1], settings, Generator())
        two = boundary_search(TwoClasses(), x, y_NL[:, 0].long(), settings, Generator())
        torch.testing.assert_close(one.x, two.x)
        torch.testing.assert_close(one.steps_N, two.steps_N)
        torch.testing.assert_close(one.crossed_N[:, 0], two.crossed_N)
        torch.testing.assert_close(
            path_losses(one.logits_TNC, y_NL[:, :1])[..., 0], path_losses(two.logits_TNC, y_NL[:, 0].long())
        )
        assert one.passes == two.passes


def slow_search(model: nn.Module, x0: Tensor, y_L: Tensor, settings: SearchSettings) -> tuple[Tensor, int]:
    """One image: ascend the loss of the labels that have not crossed, until none is left."""
    x = x0.clone()
    for t in range(settings.max_steps):
        x.requires_grad_(True)
        logits = model(x[None])[0]
        left = [label for label in range(len(y_L)) if bool(logits[label] > 0) == bool(y_L[label])]
        if not left:
            return x.detach(), t
        loss = sum((F.softplus((1 - 2 * y_L[label]) * logits[label]) for label in left), torch.zeros(()))
        (gradient,) = torch.autograd.grad(loss, x)
        step = settings.eta / math.sqrt(t + 1) * gradient.sign()
        x = torch.minimum(torch.maximum(x.detach() + step, x0 - settings.epsilon), x0 + settings.epsilon).clamp(0, 1)
    return x.detach(), settings.max_steps


def test_the_search_is_that_of_a_slow_loop() -> None:
    x, y_NL = images(10)
    path = boundary_search(Quadrants(), x, y_NL, SEARCH, Generator())
    for i in range(len(x)):
        expected, steps = slow_search(Quadrants(), x[i], y_NL[i], SEARCH)
        torch.testing.assert_close(path.x[i], expected)
        assert int(path.steps_N[i]) == steps
    assert bool(path.crossed_N.all())
    assert path.crossed_N.shape == y_NL.shape


def test_only_what_is_sought_is_crossed() -> None:
    x, y_NL = images(12)
    sought_NL = sought_labels(y_NL, [0])
    torch.testing.assert_close(sought_NL, torch.stack([y_NL[:, 0] > 0, torch.zeros(12, dtype=torch.bool)], dim=1))
    path = boundary_search(Quadrants(), x, y_NL, SEARCH, Generator(), sought=sought_NL)
    assert bool(path.crossed_N[sought_NL].all())
    assert bool((path.steps_N[y_NL[:, 0] == 0] == 0).all())  # nothing is sought of them
    assert bool(sought_labels(y_NL, []).all())


def test_losses_and_confidence_are_of_each_label() -> None:
    logits, y_NL = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    expected = torch.tensor([[math.log1p(math.exp(-2)), math.log1p(math.exp(1))]])
    torch.testing.assert_close(boundary_losses(logits, y_NL), expected)
    torch.testing.assert_close(confidence(logits, y_NL), torch.exp(-expected))
    assert has_crossed(logits, y_NL).tolist() == [[False, True]]


def test_strata_are_classes_or_the_sides_of_each_label() -> None:
    y_N, y_NL = torch.tensor([2, 0, 2]), torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert strata(y_N) == [0, 2]
    assert strata(y_NL) == [1, 2, 3, 4, 5]  # nobody lacks the first label
    values_N, values_NL = torch.tensor([1, 2, 3]), torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert values_N[place_of(2, y_N)].tolist() == [1, 3]
    assert [values_NL[place_of(s, y_NL)].tolist() for s in range(6)] == [[], [1, 4], [2], [5], [6], [3]]


# --- targets -------------------------------------------------------------------------------------------------------------


def search_all(n: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    x, y_NL = images(n)
    never = SEARCH.model_copy(update={"stop": "never"})
    return x, y_NL, boundary_search(Quadrants(), x, y_NL, never, Generator()).logits_TNC


def test_nearest_is_the_other_side_and_soft_never_the_true_one() -> None:
    _, y_NL, logits_TNL = search_all()
    torch.testing.assert_close(make_targets(logits_TNL, y_NL, TargetSettings(kind="nearest")), 1 - y_NL)
    soft_NL = make_targets(logits_TNL, y_NL, TargetSettings(kind="soft"))
    assert bool((torch.where(y_NL > 0.5, soft_NL, 1 - soft_NL) <= 0.5).all())


def test_calibrated_losses_are_the_references_of_each_side_of_each_label() -> None:
    _, y_NL, logits_TNL = search_all(16)
    reference = {s: torch.linspace(0.1, 1 + s, 8).double() for s in range(4)}
    targets_NL = make_targets(logits_TNL, y_NL, TargetSettings(overshoot=1.5), reference)
    losses_NL = -torch.where(y_NL > 0.5, targets_NL, 1 - targets_NL).log()
    for s in range(4):
        own = losses_NL[place_of(s, y_NL)].sort().values  # 8 images, 8 levels
        torch.testing.assert_close(own, 1.5 * reference[s].float(), atol=1e-5, rtol=1e-5)
    halved = make_targets(logits_TNL, y_NL, TargetSettings(overshoot=1.5), reference, overshoot=torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(halved[:, 1], targets_NL[:, 1])  # each label has a factor of its own
    assert bool((losses_NL[:, 0] > -torch.where(y_NL > 0.5, halved, 1 - halved)[:, 0].log()).all())


def test_labels_that_are_not_forgotten_stay_as_the_teacher_has_them() -> None:
    x, y_NL, logits_TNL = search_all()
    targets_NL = make_targets(logits_TNL, y_NL, TargetSettings(kind="nearest"), forgotten=[1])
    taught_NL = Quadrants()(x).sigmoid()
    torch.testing.assert_close(targets_NL[:, 0], taught_NL[:, 0])
    torch.testing.assert_close(targets_NL[:, 1], torch.where(y_NL[:, 1] > 0.5, 0.0, taught_NL[:, 1]))


def test_targets_that_labels_cannot_have() -> None:
    _, y_NL, logits_TNL = search_all()
    with pytest.raises(ValueError, match="topk chooses among classes"):
        make_targets(logits_TNL, y_NL, TargetSettings(kind="topk"))
    with pytest.raises(ValueError, match="need the reference losses"):
        make_targets(logits_TNL, y_NL, TargetSettings())


# --- losses and the whole ------------------------------------------------------------------------------------------------


def test_the_losses_are_means_over_labels() -> None:
    logits_NL = torch.randn(5, 3, generator=Generator().manual_seed(0))
    y_NL = (torch.rand(5, 3, generator=Generator().manual_seed(1)) > 0.5).float()
    slow = torch.stack([F.softplus((1 - 2 * y) * z) for z, y in zip(logits_NL.flatten(), y_NL.flatten(), strict=True)]).mean()
    torch.testing.assert_close(forget_loss(logits_NL, y_NL, labels=True), slow)
    torch.testing.assert_close(retain_loss(logits_NL, y_NL, None, LocalSettings()), slow)


def test_distillation_is_least_at_the_teacher() -> None:
    settings = LocalSettings(distil=1.0, distil_temperature=3.0)
    teacher_NL = torch.randn(5, 3, generator=Generator().manual_seed(0))
    y_NL = torch.ones(5, 3)
    student_NL = teacher_NL.clone().requires_grad_(True)
    loss = retain_loss(student_NL, y_NL, teacher_NL, settings)
    torch.testing.assert_close(loss, torch.zeros(()), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(loss, student_NL)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)
    assert float(retain_loss(teacher_NL + 0.5, y_NL, teacher_NL, settings)) > 0.01


def small_net() -> nn.Module:
    """Trained on the four combinations; it can do more than tell halves by one weight each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.ReLU(), nn.Linear(16, 2))
    x, y_NL = images(64)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(model(x), y_NL).backward()
        optimiser.step()
    return model


def agreement(model: nn.Module, x: Tensor, y_NL: Tensor) -> list[float]:
    """Accuracy of each label."""
    return [float(share) for share in (~has_crossed(predict(model, x), y_NL)).float().mean(0)]


def test_a_label_is_forgotten_and_the_other_is_kept() -> None:
    model, (x, y_NL) = small_net(), images(64)
    has = y_NL[:, 0] > 0.5
    assert min(agreement(model, x, y_NL)) == 1
    settings = UnlearningSettings(
        psi=0.5,
        search=SearchSettings(epsilon=0.4, eta=0.2, max_steps=10, stop="crossed"),
        target=TargetSettings(kind="nearest"),
        local=LocalSettings(rounds=4, steps=20, forget_batch=16, retain_batch=16, learning_rate=0.2, distil=0.5),
    )
    result = unlearn(model, (x[has], y_NL[has]), (x[~has], y_NL[~has]), settings=settings, forgotten=[0])
    fresh, truth_NL = images(40, seed=5)
    absent = torch.stack([torch.zeros(40), truth_NL[:, 1]], dim=1)
    assert min(agreement(result.model, fresh, absent)) > 0.9  # says label 0 of nothing any more, and label 1 as before


def test_samples_with_labels_come_to_be_as_uncertain_as_unseen_images() -> None:
    model, (x, y_NL), unseen = small_net(), images(64), images(40, seed=7)
    noisy = (unseen[0], (unseen[1] + (torch.rand(40, 2, generator=Generator().manual_seed(2)) < 0.2)) % 2)  # hard to tell
    forget, retain = (x[:12], y_NL[:12]), (x[12:], y_NL[12:])
    local = LocalSettings(rounds=5, steps=10, forget_batch=12, retain_batch=24, learning_rate=0.1)
    result = unlearn(model, forget, retain, noisy, UnlearningSettings(local=local))
    before, after = (boundary_losses(predict(m, forget[0]), forget[1]).mean() for m in (model, result.model))
    assert after > 2 * before
    assert result.targets_NC.shape == (12, 2)
