"""For each central method what it is known to do, on a tiny problem."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.client.unlearning import unlearn
from excise.client.unlearning.inference import predict
from excise.common.metrics import accuracy
from excise.common.settings import PRESETS
from excise.simulations.baselines import descent as steps
from excise.simulations.baselines.central import bad_teacher, ours, scrub
from excise.simulations.baselines.central.bad_teacher import knows_nothing
from excise.simulations.baselines.central.boundary_shrink import next_class
from excise.simulations.baselines.central.delete import without_true
from excise.simulations.baselines.central.random_labels import other_labels
from excise.simulations.baselines.central.salun import saliency
from excise.simulations.baselines.central.scrub import divergence
from excise.simulations.baselines.central.ssd import importance
from excise.simulations.baselines.descent import Descent, batches, begin_anew, classes, endless, last_layers, layers
from excise.simulations.baselines.method import Problem
from excise.simulations.baselines.registry import CENTRAL
from tests.simulations.tiny import first, of, pictures, same, trained, weights


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained(pictures(50, 0))


@pytest.fixture(scope="module")
def problem(original: nn.Module) -> Problem:
    """Forget class 0 as a whole."""
    train = pictures(50, 0)
    return Problem(original, of(train, train[1] == 0), of(train, train[1] != 0), pictures(10, 1), whole_class=True)


# ---- steps, batches and layers --------------------------------------------------------------------------------------------


def test_layers_are_in_order_with_their_norms(original: nn.Module) -> None:
    assert [[type(m).__name__ for m in layer] for layer in layers(original)] == [["Conv2d", "BatchNorm2d"]] * 3 + [["Linear"]]
    assert {id(p) for p in last_layers(original, 4)} == {id(p) for p in original.parameters()}
    assert classes(original) == 3


@pytest.mark.parametrize(("images", "sizes"), [(9, [3, 3, 3]), (10, [3, 3, 4]), (8, [3, 3, 2]), (1, [1]), (0, [])])
def test_batches_hold_every_image_once_and_leave_none_alone(images: int, sizes: list[int]) -> None:
    x = torch.arange(float(images))[:, None]
    drawn = [part for part, _ in batches((x, x[:, 0]), Generator(), 3)]
    assert [len(part) for part in drawn] == sizes
    assert sorted(int(one) for part in drawn for one in part) == list(range(images))
    if images:
        again = endless((x, x[:, 0]), Generator(), 3)
        assert sum(len(next(again)[0]) for _ in range(2 * len(sizes))) == 2 * images


def test_steps_are_those_of_sgd(original: nn.Module) -> None:
    x, y = pictures(8, 5)
    descent, by_hand = Descent(original, 0.01), copy.deepcopy(original).train()
    optimiser = torch.optim.SGD(by_hand.parameters(), 0.01, 0.9)
    for _ in range(3):
        descent.step(F.cross_entropy(descent(x), y))
        optimiser.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 5.0)
        optimiser.step()
    made = descent.made()
    assert same(weights(by_hand), weights(made.model))
    assert made.passes == 3 * len(y)


def test_one_image_alone_moves_no_statistics(original: nn.Module) -> None:
    descent = Descent(original, 0.01)
    descent(pictures(1, 0)[0][:1])
    assert same(weights(original), weights(descent.model))
    assert all(module.training for module in descent.model.modules())


# ---- methods --------------------------------------------------------------------------------------------------------------


def test_neg_grad_weighs_the_two_losses(problem: Problem) -> None:
    """With α near 1 it is fine-tuning; the smaller α is, the larger the forget images' loss becomes."""
    x, y = problem.forget
    lost = [
        float(F.cross_entropy(predict(CENTRAL["NegGrad+"](problem, {"alpha": a, "epochs": 5}).model, x), y))
        for a in (0.9999, 0.95, 0.8)
    ]
    assert lost == sorted(lost)
    assert lost[0] < lost[-1]


def test_fine_tuning_is_training_on_retain_images(problem: Problem) -> None:
    made, (x, y) = CENTRAL["fine-tune"](problem, {"epochs": 1, "batch": 128}), problem.retain  # a hundred images are one batch
    by_hand = copy.deepcopy(problem.original).train()
    F.cross_entropy(
        by_hand(x[torch.randperm(len(y), generator=Generator().manual_seed(0))]),
        y[torch.randperm(len(y), generator=Generator().manual_seed(0))],
    ).backward()
    nn.utils.clip_grad_norm_(by_hand.parameters(), 5.0)
    torch.optim.SGD(by_hand.parameters(), 0.05).step()
    for name, value in made.model.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name])


@pytest.mark.parametrize("name", ["CF-k", "EU-k"])
def test_only_the_last_layers_change(name: str, problem: Problem) -> None:
    made = CENTRAL[name](problem, {"layers": 2}).model
    old, new = layers(problem.original), layers(made)
    changed = [
        not all(same(weights(a), weights(b)) for a, b in zip(*pair, strict=True)) for pair in zip(old, new, strict=True)
    ]
    assert changed == [False, False, True, True]


def test_eu_k_really_begins_anew(original: nn.Module, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = copy.deepcopy(original)
    begin_anew(fresh, 2, seed=3)
    old, new = layers(original), layers(fresh)
    for number in (-2, -1):
        pair = torch.stack([layer[number][0].get_parameter("weight").detach().flatten() for layer in (old, new)])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.5
    norm = new[-2][1]
    assert torch.equal(norm.get_buffer("running_mean"), torch.zeros(8))
    # What it trains begins with those weights, not with the original's.
    monkeypatch.setattr(steps.Descent, "step", lambda self, loss: None)
    begun = copy.deepcopy(original)
    begin_anew(begun, 1, seed=problem.seed)
    made = CENTRAL["EU-k"](problem, {"layers": 1, "epochs": 1}).model
    assert same(weights(layers(begun)[-1][0]), weights(layers(made)[-1][0]))


def test_the_teacher_of_scrub_is_not_its_student(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both are one object the divergence stays 0 however far the student goes."""
    seen: list[tuple[Tensor, float]] = []

    def spy(teacher: Tensor, student: Tensor) -> Tensor:
        found = divergence(teacher, student)
        seen.append((teacher, float(found.detach())))
        return found

    monkeypatch.setattr(scrub, "divergence", spy)
    CENTRAL["SCRUB"](problem, {"learning_rate": 0.05, "away": 2, "epochs": 0, "batch": 128})
    told = predict(problem.original, problem.forget[0]).sort(0).values
    away = [(teacher, value) for teacher, value in seen if len(teacher) == len(told)]
    assert len(away) == 2
    for teacher, _ in away:
        torch.testing.assert_close(teacher.sort(0).values, told)
    assert seen[-1][1] > 1e-3
    assert float(divergence(told, told)) == pytest.approx(0, abs=1e-6)


def test_a_bad_teacher_knows_nothing(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pictures(40, 2)
    bad = knows_nothing(problem.original, seed=0)
    assert accuracy(predict(bad, x), y) < 0.6
    assert accuracy(predict(problem.original, x), y) > 0.95
    told: list[Tensor] = []
    monkeypatch.setattr(
        bad_teacher, "divergence", lambda teacher, student: told.append(teacher) or divergence(teacher, student)
    )
    CENTRAL["bad teacher"](problem, {"share": 1.0})
    everything = torch.cat([predict(bad, problem.forget[0]), predict(problem.original, problem.retain[0])])
    torch.testing.assert_close(torch.cat(told).sort(0).values, everything.sort(0).values, atol=1e-4, rtol=1e-4)


def test_labels_are_drawn_evenly_among_the_others() -> None:
    y = torch.arange(3).repeat(2000)
    drawn = other_labels(y, 3, Generator().manual_seed(0))
    for c in range(3):
        counts = torch.bincount(drawn[y == c], minlength=3)
        assert counts[c] == 0
        assert counts.max() < 1.15 * 1000


def test_salun_changes_only_the_most_salient_weights(problem: Problem) -> None:
    masks = saliency(problem.original, problem.forget, 0.25)
    assert sum(int(mask.sum()) for mask in masks) == pytest.approx(0.25 * sum(mask.numel() for mask in masks), rel=0.01)
    x, y = problem.forget
    model = copy.deepcopy(problem.original)
    F.cross_entropy(model(x), y).backward()
    least = min(
        float(p.grad[m].abs().min()) for p, m in zip(model.parameters(), masks, strict=True) if p.grad is not None and m.any()
    )
    most = max(
        float(p.grad[~m].abs().max())
        for p, m in zip(model.parameters(), masks, strict=True)
        if p.grad is not None and (~m).any()
    )
    assert least >= most * 0.999
    made = CENTRAL["SalUn"](problem, {"share": 0.25}).model
    for mask, before, after in zip(masks, problem.original.parameters(), made.parameters(), strict=True):
        assert torch.equal(before[~mask], after[~mask])
    assert any((a != b).any() for a, b in zip(problem.original.parameters(), made.parameters(), strict=True))


def test_importance_is_the_mean_of_single_images_squared_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 0, 1, 1])
    slow = torch.zeros(2, 4)
    for image, label in zip(x, y, strict=True):
        p = model(image[None]).softmax(1)[0] - F.one_hot(label, 2)
        slow += torch.outer(p, image.flatten()) ** 2 / 5
    (weight, _), images = importance(model, (x, y))
    torch.testing.assert_close(weight, slow.detach())
    assert images == 5


def test_ssd_dampens_only_what_matters_more_for_forget_images(problem: Problem) -> None:
    model = CENTRAL["SSD"](problem, {"alpha": 1.5, "lambda": 1.0}).model
    f, _ = importance(problem.original, problem.forget)
    d, _ = importance(
        problem.original,
        (torch.cat([problem.forget[0], problem.retain[0]]), torch.cat([problem.forget[1], problem.retain[1]])),
    )
    touched = 0
    for before, after, mine, every in zip(problem.original.parameters(), model.parameters(), f, d, strict=True):
        chosen = mine > 1.5 * every
        touched += int(chosen.sum())
        assert torch.equal(before[~chosen], after[~chosen])
        torch.testing.assert_close(after[chosen], (every / mine)[chosen] * before[chosen])
    assert touched


def test_delete_masks_the_true_class_and_keeps_the_rest_in_proportion() -> None:
    logits, y = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    told = without_true(logits, y)[0]
    assert told[0] == 0
    assert float(told[1] / told[2]) == pytest.approx(float(torch.tensor(1.0).exp()))


def test_the_next_class_is_never_the_own(problem: Problem) -> None:
    every = pictures(40, 2)
    for epsilon in (0.0, 0.1):
        assert (next_class(problem.original, every, epsilon) != every[1]).all()
    likely = predict(problem.original, every[0]).scatter(1, every[1][:, None], -torch.inf).argmax(1)
    assert torch.equal(next_class(problem.original, every, 0.0), likely)


def test_ours_is_the_product_s_own_unlearning(problem: Problem) -> None:
    settings = {"retain_batch": 48, "learning_rate": 0.04, "psi": 0.2}
    made = CENTRAL["excise, nearest"](problem, settings)
    asked = ours.settings_of("classes", settings)
    theirs = unlearn(problem.original, problem.forget, problem.retain, None, asked, forgotten=[0])
    assert same(weights(made.model), weights(theirs.model))
    assert made.passes == theirs.passes


def test_the_targets_of_ours_differ(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ours, "unlearn", lambda *given, **_: asked.append(given[4]) or unlearn(*given))
    few = Problem(problem.original, first(problem.forget, 4), problem.retain, problem.unseen, whole_class=True)
    for method in ours.OURS:
        method(few, {"retain_batch": 32})
    assert [settings.target.kind for settings in asked] == ["nearest", "soft", "topk", "calibrated"]
    assert [settings.search.stop for settings in asked] == ["crossed"] * 3 + [PRESETS["samples"].search.stop]
    assert asked[-1].forget_sample is None


def test_images_whose_labels_are_withdrawn_are_told_by_another_class_and_nothing_else_suffers() -> None:
    """A third of the images of class 0 and 1 carry the other's label. Without those the model is right on unseen images."""
    x, right = pictures(50, 0)
    wrong = (right < 2) & (torch.arange(len(right)) % 3 == 0)
    labels = torch.where(wrong, 1 - right, right)
    problem = Problem(
        trained((x, labels)), (x[wrong], labels[wrong]), (x[~wrong], labels[~wrong]), pictures(20, 1), False, wrong_labels=True
    )
    assert problem.aim == "labels"
    made = CENTRAL["excise, nearest"](problem)
    before, after = (accuracy(predict(model, x[wrong]), labels[wrong]) for model in (problem.original, made.model))
    assert before > 0.5
    assert after < before / 2
    unseen = [accuracy(predict(model, problem.unseen[0]), problem.unseen[1]) for model in (problem.original, made.model)]
    assert unseen[1] >= unseen[0]
