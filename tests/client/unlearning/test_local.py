"""Local unlearning steps: batch norm stays where it must, nothing depends on chance, and a toy class is forgotten."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from excise.client.training import train_locally
from excise.client.unlearning.boundary import boundary_search
from excise.client.unlearning.local import (
    MAX_REFUSALS,
    Diverged,
    ForgetSet,
    LocalResult,
    RetainSet,
    drawn_rows,
    step_size,
    unlearn_locally,
)
from excise.client.unlearning.targets import make_targets
from excise.common.metrics import accuracy
from excise.common.settings import LocalSettings, SearchSettings, TargetSettings, TrainingSettings
from excise.common.weights import Weights, difference, digest, norm, snapshot


def _seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _filled(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = _seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def _student() -> nn.Module:
    return _filled(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)))


def _sets(n_f: int = 6, n_r: int = 10) -> tuple[ForgetSet, RetainSet]:
    x = torch.rand(n_f + n_r, 3, generator=_seeded(1))
    targets_NC = torch.rand(n_f, 2, generator=_seeded(2)).softmax(1)
    return ForgetSet(x[:n_f], targets_NC), RetainSet(x[n_f:], torch.arange(n_r) % 2)


def _statistics(model: nn.Module) -> Weights:
    return {name: tensor for name, tensor in snapshot(model).items() if "running" in name or "tracked" in name}


SETTINGS = LocalSettings(rounds=2, steps=3, forget_batch=4, retain_batch=4, learning_rate=0.05, distil=0.0)


# --- batch norm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_norm", "forget_only", "moves"),
    [
        ("frozen", False, False),
        ("frozen", True, False),
        ("live", False, True),
        ("live", True, False),
        ("auto", False, True),
        ("auto", True, False),
        ("published", False, True),
        ("published", True, True),
    ],
)
def test_batch_norm_statistics(batch_norm: str, forget_only: bool, moves: bool) -> None:
    student = _student()
    before, weights = digest(_statistics(student)), snapshot(student)
    forget, retain = _sets()
    a_k = 1.0 if forget_only else 0.4
    local = SETTINGS.model_copy(update={"batch_norm": batch_norm})
    unlearn_locally(student, forget, None if forget_only else retain, a_k, local, 0, _seeded())
    assert (digest(_statistics(student)) != before) == moves
    assert norm(difference(snapshot(student), weights)) > 0
    assert not any(module.training for module in student.modules())


@pytest.mark.parametrize(
    ("distance", "forget_batch", "retain_batch", "a_k", "moves"),
    [
        (1.0, 4, 4, 0.4, False),
        (1.0, 2, 6, 0.4, True),  # few of the batch are forget images
        (0.5, 4, 4, 0.4, True),  # just within the limit
        (0.5, 5, 4, 0.4, False),
        (0.6, 100, 40, 0.4, True),  # there are only 6 forget and 10 retain images
        (1.0, 4, 4, 0.0, True),  # a recovery round: nothing is forgotten
    ],
)
def test_auto_goes_by_the_classes_of_the_batches_that_are_drawn(
    distance: float, forget_batch: int, retain_batch: int, a_k: float, moves: bool
) -> None:
    student = _student()
    before = digest(_statistics(student))
    forget, retain = _sets()
    batches = {"batch_norm": "auto", "forget_batch": forget_batch, "retain_batch": retain_batch}
    local = SETTINGS.model_copy(update=batches)
    unlearn_locally(student, replace(forget, distance=distance), retain, a_k, local, 0, _seeded())
    assert (digest(_statistics(student)) != before) == moves


def test_a_retain_set_without_weight_makes_batches_forget_only() -> None:
    student = _student()
    before = digest(_statistics(student))
    result = unlearn_locally(student, *_sets(), 1.0, SETTINGS, 0, _seeded())
    assert digest(_statistics(student)) == before
    assert math.isnan(result.retain_loss)


# --- steps -----------------------------------------------------------------------------------------------------------------


def test_same_seed_same_student() -> None:
    def run(seed: int, round_index: int = 0) -> tuple[str, LocalResult]:
        student = _student()
        result = unlearn_locally(student, *_sets(), 0.4, SETTINGS, round_index, _seeded(seed))
        return digest(student.state_dict()), result

    assert run(3) == run(3)
    assert run(3)[0] != run(4)[0]
    assert run(3)[0] != run(3, round_index=1)[0], "the step size must go on falling from round to round"


def test_global_generator_is_untouched() -> None:
    student = _student()  # torch's layers draw their first weights from it
    before = torch.get_rng_state()
    unlearn_locally(student, *_sets(), 0.4, SETTINGS, 0, _seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_step_size_schedules() -> None:
    sizes = {
        schedule: [
            step_size(LocalSettings(rounds=2, steps=2, learning_rate=0.4, schedule=schedule), step) for step in range(4)
        ]
        for schedule in ("constant", "linear", "cosine")
    }
    assert sizes["constant"] == [0.4] * 4
    assert sizes["linear"] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert sizes["cosine"] == pytest.approx([0.4, 0.4 * (2 + math.sqrt(2)) / 4, 0.2, 0.4 * (2 - math.sqrt(2)) / 4])


@pytest.mark.parametrize(("clip", "binds"), [(1e-3, True), (1e6, False)])
def test_clipping_bounds_the_first_update(clip: float, binds: bool) -> None:
    local = SETTINGS.model_copy(update={"steps": 1, "clip_norm": clip, "learning_rate": 0.5, "batch_norm": "frozen"})
    student = _student()
    before = snapshot(student)
    result = unlearn_locally(student, *_sets(), 0.4, local, 0, _seeded())
    moved = norm(difference(snapshot(student), before))
    assert result.gradient_norm > 1e-2  # measured before clipping
    assert moved == pytest.approx(0.5 * (clip if binds else result.gradient_norm), rel=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_update_for_each_unit_of_step_size_is_the_gradient(momentum: float) -> None:
    """Full batches, and steps so small that the gradient stays what it is."""
    local = SETTINGS.model_copy(
        update={
            "rounds": 3,
            "steps": 5,
            "forget_batch": 6,
            "retain_batch": 10,
            "momentum": momentum,
            "learning_rate": 1e-4,
            "schedule": "cosine",
            "clip_norm": 1e6,
            "batch_norm": "frozen",
        }
    )
    student = _student()
    before = snapshot(student)
    result = unlearn_locally(student, *_sets(), 0.4, local, 1, _seeded())
    assert norm(difference(snapshot(student), before)) / result.step_sum == pytest.approx(result.gradient_norm, rel=1e-2)
    rates = [step_size(local, 5 + t) for t in range(5)]
    slow = sum(rate * sum(momentum**i for i in range(t + 1)) for t, rate in enumerate(rates))
    assert result.step_sum == pytest.approx(slow)


def test_later_rounds_take_smaller_steps() -> None:
    moved = []
    for round_index in (0, 1):
        student = _student()
        before = snapshot(student)
        local = SETTINGS.model_copy(update={"steps": 1, "schedule": "linear"})
        unlearn_locally(student, *_sets(), 0.4, local, round_index, _seeded())
        moved.append(norm(difference(snapshot(student), before)))
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-4)


class _Recorder(nn.Module):
    """Remembers the images it is shown; each image is its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x[:, 0].long().tolist())
        return torch.cat([x * 0, x * 0], dim=1) * self.scale


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), size=st.integers(1, 15), steps=st.integers(1, 12), seed=st.integers(0, 1000))
def test_every_image_is_seen_once_before_any_twice(n: int, size: int, steps: int, seed: int) -> None:
    student = _Recorder()
    retain = RetainSet(torch.arange(n).float()[:, None], torch.zeros(n, dtype=torch.int64))
    local = LocalSettings(steps=steps, retain_batch=size, distil=0.0)
    result = unlearn_locally(student, None, retain, 0.0, local, 0, _seeded(seed))
    assert [len(batch) for batch in student.seen] == [min(size, n)] * steps
    stream = [image for batch in student.seen for image in batch]
    for start in range(0, len(stream), n):
        lap = stream[start : start + n]
        assert len(set(lap)) == len(lap)
    assert result.passes == len(stream)


def test_a_joint_step_sends_forget_and_retain_images_together() -> None:
    student = _Recorder()
    forget = ForgetSet(torch.arange(5).float()[:, None], torch.full((5, 2), 0.5))
    retain = RetainSet(torch.arange(100, 107).float()[:, None], torch.zeros(7, dtype=torch.int64))
    local = LocalSettings(steps=4, forget_batch=2, retain_batch=3, distil=0.0)
    result = unlearn_locally(student, forget, retain, 0.5, local, 0, _seeded())
    assert len(student.seen) == 4
    for batch in student.seen:
        assert [image >= 100 for image in batch] == [False, False, True, True, True]
    assert result.passes == 4 * 5
    assert result.forget_loss == pytest.approx(math.log(2))
    assert result.retain_loss == pytest.approx(math.log(2))


@pytest.mark.parametrize(("images", "batches"), [(3, 2), (4, 2), (7, 4)])
def test_epochs_count_passes_over_the_forget_images(images: int, batches: int) -> None:
    student = _Recorder()
    forget = ForgetSet(torch.arange(images).float()[:, None], torch.full((images, 2), 0.5))
    local = LocalSettings(steps=1, epochs=3, schedule="constant", forget_batch=2, distil=0.0)
    unlearn_locally(student, forget, None, 1.0, local, 0, _seeded())
    assert len(student.seen) == 3 * batches
    assert {image for batch in student.seen for image in batch} == set(range(images))


def test_epochs_do_not_concern_sites_that_forget_nothing() -> None:
    student = _Recorder()
    retain = RetainSet(torch.arange(7).float()[:, None], torch.zeros(7, dtype=torch.int64))
    local = LocalSettings(steps=5, epochs=3, schedule="constant", retain_batch=2, distil=0.0)
    unlearn_locally(student, None, retain, 0.0, local, 0, _seeded())
    assert len(student.seen) == 5


def test_retain_only_sites_report_no_forget_loss() -> None:
    _, retain = _sets()
    result = unlearn_locally(_student(), None, retain, 0.0, SETTINGS, 0, _seeded())
    assert math.isnan(result.forget_loss)
    assert result.retain_loss > 0


def test_distillation_reads_the_teachers_row_of_each_image() -> None:
    """A student that equals its teacher does not move under distillation alone."""
    student = _student()
    student.eval()
    _, retain = _sets()
    with torch.no_grad():
        retain = RetainSet(retain.x, retain.y_N, student(retain.x))
    before = snapshot(student)
    local = SETTINGS.model_copy(update={"distil": 1.0, "batch_norm": "frozen"})
    result = unlearn_locally(student, None, retain, 0.0, local, 0, _seeded())
    assert result.retain_loss == pytest.approx(0, abs=1e-6)
    assert norm(difference(snapshot(student), before)) < 1e-5


# --- the pull towards the deployed model -----------------------------------------------------------------------------------


def test_mu_needs_the_teacher() -> None:
    with pytest.raises(ValueError, match="mu > 0"):
        unlearn_locally(_student(), *_sets(), 0.4, SETTINGS.model_copy(update={"mu": 0.1}), 0, _seeded())


def test_mu_holds_the_student_back() -> None:
    moved = []
    for mu in (0.0, 5.0):
        student = _student()
        before = snapshot(student)
        local = SETTINGS.model_copy(update={"mu": mu, "steps": 20, "momentum": 0.0, "batch_norm": "frozen"})
        unlearn_locally(student, *_sets(), 0.4, local, 0, _seeded(), before)
        moved.append(norm(difference(snapshot(student), before)))
    assert moved[1] < 0.7 * moved[0]


def test_a_weighted_loss_without_images_is_refused() -> None:
    forget, retain = _sets()
    with pytest.raises(ValueError, match="no images"):
        unlearn_locally(_student(), None, retain, 0.5, SETTINGS, 0, _seeded())
    with pytest.raises(ValueError, match="no images"):
        unlearn_locally(_student(), forget, None, 0.5, SETTINGS, 0, _seeded())
    for sets, a_k in (((None, retain), 1.0), ((forget, None), 0.0)):
        with pytest.raises(ValueError, match=r"no images|non-empty"):
            unlearn_locally(_student(), *sets, a_k, SETTINGS, 0, _seeded())


class Fragile(nn.Module):
    """Gives NaN once its weight has moved too far."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.inner, self.limit = _student(), limit
        self.start = [p.detach().clone() for p in self.inner.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        moved = sum((a - b).abs().sum() for a, b in zip(self.inner.parameters(), self.start, strict=True))
        logits: Tensor = self.inner(x)
        return logits if moved < self.limit else logits * math.nan


def test_a_round_that_is_not_finite_is_taken_back_and_begun_again_with_smaller_steps() -> None:
    local = SETTINGS.model_copy(update={"learning_rate": 0.4})
    plain = unlearn_locally(Fragile(math.inf), *_sets(), 0.4, local, 0, _seeded())
    student = Fragile(0.4)
    result = unlearn_locally(student, *_sets(), 0.4, local, 0, _seeded())
    assert 0 < result.refusals <= MAX_REFUSALS
    assert result.step_sum == pytest.approx(plain.step_sum / 2**result.refusals)
    assert result.passes == plain.passes * (result.refusals + 1)
    gentle, smaller = local.model_copy(update={"learning_rate": 0.4 / 2**result.refusals}), Fragile(math.inf)
    half = unlearn_locally(smaller, *_sets(), 0.4, gentle, 0, _seeded())
    assert half.forget_loss == result.forget_loss  # the same mini-batches again
    assert digest(snapshot(smaller)) == digest(snapshot(student))


def test_a_round_that_is_never_finite_leaves_the_student_as_it_came() -> None:
    student = Fragile(0.0)
    before = digest(snapshot(student))
    with pytest.raises(Diverged, match="smaller learning_rate"):
        unlearn_locally(student, *_sets(), 0.4, SETTINGS, 0, _seeded())
    assert digest(snapshot(student)) == before


@pytest.mark.parametrize("batch_norm", ["live", "published"])
def test_a_batch_of_one_image_has_no_statistics(batch_norm: str) -> None:
    local, student = SETTINGS.model_copy(update={"batch_norm": batch_norm}), _student()
    before = digest(_statistics(student))
    _, retain = _sets(n_r=1)
    result = unlearn_locally(student, None, retain, 0.0, local, 0, _seeded())
    assert (result.passes, digest(_statistics(student))) == (local.steps, before)


# --- end to end ------------------------------------------------------------------------------------------------------------


def _blobs(seed: int) -> tuple[Tensor, Tensor]:
    """Three well-separated classes in the unit square."""
    centres = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]])
    y_N = torch.arange(90) % 3
    x = centres[y_N] + 0.05 * torch.randn(90, 2, generator=_seeded(seed))
    return x.clamp(0, 1), y_N


@pytest.fixture(name="trained")
def _trained() -> nn.Module:
    model = _filled(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)))
    x, y_N = _blobs(0)
    training = TrainingSettings(rounds=1, epochs=150, learning_rate=0.3, batch_size=30, augment=False)
    train_locally(model, x, y_N, training, 0, _seeded())
    return model


def test_a_class_is_forgotten_and_the_others_are_not(trained: nn.Module) -> None:
    x, y_N = _blobs(0)
    unseen, unseen_y_N = _blobs(9)
    assert accuracy(trained(unseen), unseen_y_N) == 1
    gone = y_N == 2
    path = boundary_search(
        trained, x[gone], y_N[gone], SearchSettings(epsilon=0.5, eta=0.1, max_steps=20, stop="crossed"), _seeded()
    )
    assert path.crossed_N.all()
    targets_NC = make_targets(path.logits_TNC, y_N[gone], TargetSettings(kind="nearest"))
    local = LocalSettings(rounds=1, steps=60, learning_rate=0.2, distil=0.0)
    unlearn_locally(trained, ForgetSet(x[gone], targets_NC), RetainSet(x[~gone], y_N[~gone]), 0.5, local, 0, _seeded())
    for images, labels in ((x, y_N), (unseen, unseen_y_N)):
        assert accuracy(trained(images[labels == 2]), labels[labels == 2]) < 0.05
        assert accuracy(trained(images[labels != 2]), labels[labels != 2]) > 0.95


def test_calibrated_targets_raise_the_forget_loss_to_the_reference(trained: nn.Module) -> None:
    x, y_N = _blobs(0)
    gone = torch.arange(90) < 12
    reference_Q = torch.linspace(0.3, 0.9, 8)
    search = SearchSettings(epsilon=0.5, eta=0.05, max_steps=30, stop="loss")
    path = boundary_search(trained, x[gone], y_N[gone], search, _seeded(), largest_loss=0.9)
    targets_NC = make_targets(
        path.logits_TNC, y_N[gone], TargetSettings(kind="calibrated", overshoot=1.0), dict.fromkeys(range(10), reference_Q)
    )
    before = float(nn.functional.cross_entropy(trained(x[gone]), y_N[gone]).detach())
    local = LocalSettings(rounds=1, steps=200, learning_rate=0.1, distil=0.0)
    unlearn_locally(trained, ForgetSet(x[gone], targets_NC), None, 1.0, local, 0, _seeded())
    after = float(nn.functional.cross_entropy(trained(x[gone]), y_N[gone]).detach())
    assert before < 0.1
    assert 0.3 < after < 0.9


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 30),
    st.integers(1, 8),
)
def test_a_sample_leaves_out_none_or_many_of_each_class(classes: list[int], most: int, min_count: int) -> None:
    y_N = torch.tensor(classes)
    rows = drawn_rows(y_N, most, Generator().manual_seed(0), min_count)
    assert rows.tolist() == sorted(set(rows.tolist()))
    for c in set(classes):
        drawn, whole = int((y_N[rows] == c).sum()), classes.count(c)
        assert drawn == whole or (min_count <= drawn == max(most, min_count) and whole - drawn >= min_count)
    assert torch.equal(drawn_rows(y_N, None, Generator()), torch.arange(len(classes)))
    assert len(drawn_rows(y_N[:0], most, Generator())) == 0
