"""`unlearn` with everything in one place: what a researcher without a federation calls."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.client.training import train_locally
from excise.client.unlearning import Diverged, unlearn
from excise.client.unlearning.inference import predict
from excise.common.metrics import accuracy
from excise.common.settings import PRESETS, TrainingSettings, UnlearningSettings
from excise.common.weights import digest

SIDE = 8


def images(n: int, seed: int, dims: int = 2) -> tuple[Tensor, Tensor]:
    """Three classes of noise, each brighter than the one before."""
    y_N = torch.arange(n) % 3
    noise = torch.rand(n, 1, *[SIDE] * dims, generator=Generator().manual_seed(seed)) * 0.3
    return noise + 0.3 * y_N.float().view(-1, *[1] * (dims + 1)), y_N


def net(dims: int = 2, dropout: float = 0.0) -> nn.Module:
    convolution, norm, pool = (
        (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            convolution(1, 8, 3), norm(8), nn.ReLU(), pool(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 3)
        )


def trained(dims: int = 2, dropout: float = 0.0) -> nn.Module:
    return copy.deepcopy(trained_once(dims, dropout))


@cache
def trained_once(dims: int, dropout: float) -> nn.Module:
    model = net(dims, dropout)
    settings = TrainingSettings(rounds=1, epochs=40, learning_rate=0.2, batch_size=30, augment=False)
    train_locally(model, *images(90, 0, dims), settings, 0, Generator().manual_seed(0))
    return model


def settings(preset: str = "samples", **changes: Any) -> UnlearningSettings:
    local = {"rounds": 3, "steps": 20, "learning_rate": 0.05} | changes
    whole = PRESETS[preset]
    return whole.model_copy(update={"local": whole.local.model_copy(update=local)})


CLASS = settings("classes", learning_rate=0.05, forget_batch=16, retain_batch=32)


def split(dims: int = 2) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The class 2 of the training images, and the others."""
    x, y_N = images(90, 0, dims)
    return (x[y_N == 2], y_N[y_N == 2]), (x[y_N != 2], y_N[y_N != 2])


@pytest.mark.parametrize("dims", [2, 3], ids=["images", "volumes"])
def test_a_class_is_forgotten_and_the_model_given_stays(dims: int) -> None:
    model, (forget, retain) = trained(dims), split(dims)
    before = digest(model.state_dict())
    search = CLASS.search.model_copy(update={"epsilon": 0.4, "eta": 0.2})
    result = unlearn(model, forget, retain, settings=CLASS.model_copy(update={"search": search}))
    assert digest(model.state_dict()) == before
    x, y_N = images(60, 5, dims)
    logits_NC = predict(result.model, x)
    assert accuracy(logits_NC[y_N == 2], y_N[y_N == 2]) < 0.1
    assert accuracy(logits_NC[y_N != 2], y_N[y_N != 2]) > 0.9
    assert bool(result.path.crossed_N.all())
    assert len(result.rounds) == 3
    assert result.passes > sum(r.passes for r in result.rounds) > 0


def test_samples_come_to_be_as_uncertain_as_unseen_images() -> None:
    model = trained()
    x, y_N = images(90, 0)
    forget, retain = (x[:12], y_N[:12]), (x[12:], y_N[12:])
    unseen = images(60, 7)
    unseen = (unseen[0], torch.roll(unseen[1], 1))  # hard: most of these labels are wrong
    result = unlearn(model, forget, retain, unseen, settings())
    wanted = float(nn.functional.cross_entropy(result.targets_NC.log(), forget[1]))
    losses = [float(nn.functional.cross_entropy(predict(m, forget[0]), forget[1])) for m in (model, result.model)]
    assert losses[0] < losses[1] <= wanted * 1.1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_seed_repeats_and_nothing_outside_is_drawn(dropout: float) -> None:
    model, (forget, retain) = trained(dropout=dropout), split()
    state = torch.get_rng_state()
    first = unlearn(model, forget, retain, settings=CLASS, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert digest(unlearn(model, forget, retain, settings=CLASS, seed=3).model.state_dict()) == digest(
        first.model.state_dict()
    )
    assert digest(unlearn(model, forget, retain, settings=CLASS, seed=4).model.state_dict()) != digest(
        first.model.state_dict()
    )


def test_a_sample_can_stand_for_a_class() -> None:
    forget, retain = split()
    few = CLASS.model_copy(update={"forget_sample": 8})
    result, again, other = (unlearn(trained(), forget, retain, settings=few, seed=seed) for seed in (0, 0, 1))
    assert len(result.targets_NC) == len(result.path.x) == 8
    torch.testing.assert_close(result.path.x, again.path.x, rtol=0, atol=0)
    assert not torch.equal(result.path.x, other.path.x)
    assert accuracy(predict(result.model, forget[0]), forget[1]) < 0.1  # of the whole class


def test_samples_cannot_be_stood_for() -> None:
    with pytest.raises(ValueError, match="every forget image must be searched"):
        UnlearningSettings(forget_sample=8)


def test_it_can_be_stopped_after_a_round() -> None:
    told: list[int] = []

    def enough(number: int, student: nn.Module) -> bool:
        assert not student.training
        told.append(number)
        return number == 2

    assert len(unlearn(trained(), *split(), settings=CLASS, after_round=enough).rounds) == 2
    assert told == [1, 2]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs(preset: str) -> None:
    small = {"rounds": 2, "steps": 2} if PRESETS[preset].local.epochs is None else {"epochs": 1}
    local = PRESETS[preset].local.model_copy(update=small)
    result = unlearn(trained(), *split(), images(30, 7), PRESETS[preset].model_copy(update={"local": local}))
    assert all(bool(x.isfinite().all()) for x in result.model.state_dict().values())


def test_calibration_needs_unseen_images() -> None:
    nothing = (torch.empty(0, 1, SIDE, SIDE), torch.empty(0, dtype=torch.int64))
    for unseen in (None, nothing):
        with pytest.raises(ValueError, match="need `unseen` images"):
            unlearn(net(), *split(), unseen)


def test_empty_sets_are_refused() -> None:
    (x_f, y_f), (x_r, y_r) = split()
    with pytest.raises(ValueError, match="at least one image"):
        unlearn(net(), (x_f[:0], y_f[:0]), (x_r, y_r), settings=CLASS)
    with pytest.raises(ValueError, match="set or its mini-batch is empty"):
        unlearn(net(), (x_f, y_f), (x_r[:0], y_r[:0]), settings=CLASS)


def test_where_nothing_crosses_the_last_point_is_used() -> None:
    search = CLASS.search.model_copy(update={"epsilon": 1e-4, "eta": 1e-5})
    result = unlearn(trained(), *split(), settings=CLASS.model_copy(update={"search": search}))
    assert not bool(result.path.crossed_N.any())
    assert bool((result.targets_NC.argmax(1) != 2).all())


def test_a_model_that_is_not_finite_is_told() -> None:
    model = net()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(Diverged, match="not finite, even with steps of 1/16 of the size"):
        unlearn(model, *split(), settings=CLASS)


def test_an_easy_part_of_the_images_may_be_calibrated_as_such() -> None:
    """Retain images tell that these are easy: less is asked of them than unseen images at large would."""
    model = trained()
    x, y_N = images(90, 0)
    easy = predict(model, x).softmax(1).gather(1, y_N[:, None])[:, 0].argsort(descending=True, stable=True)
    forget, retain = (x[easy[:12]], y_N[easy[:12]]), (x[easy[12:]], y_N[easy[12:]])
    at_large = settings(rounds=1)
    at_large = at_large.model_copy(update={"search": at_large.search.model_copy(update={"stop": "never"})})
    level = at_large.model_copy(update={"target": at_large.target.model_copy(update={"level": "retain"})})
    found = {}
    for name, chosen in (("unseen", at_large), ("retain", level)):
        result = unlearn(model, forget, retain, images(60, 5), chosen)
        found[name] = float(result.targets_NC.gather(1, forget[1][:, None]).mean()), result.passes
    assert found["retain"][0] > found["unseen"][0]
    alike = int(torch.isin(retain[1], forget[1]).sum())  # retain images of the forget images' classes
    assert found["retain"][1] == found["unseen"][1] + min(alike, 60)
    with pytest.raises(ValueError, match="retain images of the forget images' classes"):
        unlearn(model, (x[y_N > 0][:5], y_N[y_N > 0][:5]), (retain[0], retain[1] * 0), images(60, 5), level)


def test_the_first_round_steps_away_from_the_forget_images() -> None:
    x, y_N = images(90, 0)
    forget, retain, unseen = (x[:12], y_N[:12]), (x[12:], y_N[12:]), images(60, 5)
    losses = []

    def look(_: int, student: nn.Module) -> bool:
        losses.append(float(F.cross_entropy(predict(student, forget[0]), forget[1])))
        return False

    result = unlearn(trained(), forget, retain, unseen, settings().model_copy(update={"negation": 4.0}), after_round=look)
    assert [math.isnan(of.forget_loss) for of in result.rounds] == [True, False, False]
    assert result.rounds[0].passes == 12
    assert losses[0] > float(F.cross_entropy(predict(trained(), forget[0]), forget[1]))


def test_the_overshoot_is_corrected_between_rounds() -> None:
    """A student that falls below its mark is given easier targets in the next round."""
    model = trained()
    x, y_N = images(90, 0)
    forget, retain, unseen = (x[:12], y_N[:12]), (x[12:], y_N[12:]), images(60, 5)
    whole = settings(rounds=2, learning_rate=0.5)
    found = {}
    for band in (0.0, 1e-6):
        chosen = whole.model_copy(update={"target": whole.target.model_copy(update={"band": band, "overshoot": 10.0})})
        result = unlearn(model, forget, retain, unseen, chosen)
        found[band] = float(result.targets_NC.gather(1, forget[1][:, None]).mean()), result.passes
    assert found[1e-6][0] > found[0.0][0]
    assert found[1e-6][1] == found[0.0][1] + 12  # looked at once, before the second round


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for name, value in model.state_dict().items() if "running" in name])


def test_a_batch_of_one_class_leaves_the_statistics_alone() -> None:
    x, y_N = images(90, 0)
    one, mixed = torch.arange(90) % 6 == 2, torch.arange(90) < 45  # half of class 2; half of every class
    for forgotten, moves in ((one, False), (mixed, True)):
        sets = (x[forgotten], y_N[forgotten]), (x[~forgotten], y_N[~forgotten])
        model = trained()
        student = unlearn(model, *sets, images(60, 1), settings(retain_batch=24), seed=0).model
        assert torch.equal(statistics(student), statistics(model)) != moves


def test_a_class_that_becomes_rarer_becomes_less_certain() -> None:
    x, y_N = images(90, 0)
    forgotten = torch.arange(90) % 6 == 2  # half of class 2
    asked = {}
    for shift in (True, False):
        tried = settings()
        tried = tried.model_copy(update={"target": tried.target.model_copy(update={"label_shift": shift, "band": 0.0})})
        sets = (x[forgotten], y_N[forgotten]), (x[~forgotten], y_N[~forgotten])
        asked[shift] = unlearn(trained(), *sets, images(60, 1), tried, seed=0).targets_NC[:, 2].mean()
    assert asked[True] < asked[False]
