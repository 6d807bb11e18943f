"""Relearning and resurfacing on small nets of which it is known what they still hold."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Generator, Tensor, nn

from excise.common.settings import TrainingSettings
from excise.simulations.judging.persistence import (
    LOOKED,
    ROUNDING,
    Bound,
    Images,
    Relearned,
    RelearnSettings,
    _Watch,
    after_retain_epoch,
    goal_of,
    relearn,
    relearn_ratio,
    resurfaced,
    taught,
)

QUICK = RelearnSettings(learning_rate=0.05, batch_size=8, most_steps=150)
TRAINING = TrainingSettings(rounds=40, batch_size=16, learning_rate=0.05, augment=False)
HIDDEN = 8


def images(classes: tuple[int, ...], count: int, seed: int) -> Images:
    """Vectors of 12 numbers in [0, 1], bright in the four that are their class's."""
    generator = Generator().manual_seed(seed)
    y = torch.tensor(classes).repeat_interleave(count)
    x = 0.35 * torch.rand(len(y), 12, generator=generator)
    return x + 0.6 * torch.eye(3)[y].repeat_interleave(4, dim=1), y


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))


def trained(on: Images, seed: int = 0) -> nn.Module:
    model: nn.Module = net(seed)
    for epoch in range(40):
        model = after_retain_epoch(model, on, TRAINING, seed=epoch)
    return model


FORGET, RETAIN = images((2,), 40, 0), images((0, 1), 40, 1)
EVERYTHING = torch.cat([FORGET[0], RETAIN[0]]), torch.cat([FORGET[1], RETAIN[1]])


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained(EVERYTHING)


@pytest.fixture(scope="module")
def retrained() -> nn.Module:
    return trained(RETAIN)


def test_head_only_forgetting_is_relearned_faster(original: nn.Module, retrained: nn.Module) -> None:
    assert isinstance(original, nn.Sequential)
    hidden = copy.deepcopy(original)
    with torch.no_grad():
        hidden[2].bias[2] -= 12  # the answer is gone, the features are not
    rows = taught(FORGET[1])
    assert len(rows) == 4
    tuned, goal = (FORGET[0][rows], FORGET[1][rows]), goal_of(1.0)
    of_hidden, of_retrained = (relearn(model, tuned, FORGET, goal, QUICK) for model in (hidden, retrained))
    for found in (of_hidden, of_retrained):
        assert found.steps > 0
        assert not found.censored
    ratio = relearn_ratio(of_hidden, of_retrained)
    assert ratio.bound is Bound.EXACT
    assert 0 < ratio.value < 0.8
    assert relearn_ratio(of_retrained, of_retrained).value == 1


def test_a_model_that_knows_needs_no_step(original: nn.Module) -> None:
    before = copy.deepcopy(original.state_dict())
    found = relearn(original, FORGET, FORGET, goal_of(1.0), QUICK)
    assert found == Relearned(0, censored=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())


def test_the_test_is_capped_and_says_so(retrained: nn.Module) -> None:
    before = copy.deepcopy(retrained.state_dict())
    found = relearn(retrained, FORGET, FORGET, 1.0, QUICK.model_copy(update={"most_steps": 2}))
    assert found == Relearned(2, censored=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in retrained.state_dict().items())
    last = relearn(retrained, FORGET, FORGET, 1.0, QUICK)
    exactly = relearn(retrained, FORGET, FORGET, 1.0, QUICK.model_copy(update={"most_steps": last.steps}))
    assert exactly == last
    assert not last.censored  # reached at the very last step that was allowed


def test_relearning_is_seeded_and_keeps_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    one = QUICK.model_copy(update={"batch_size": 1, "most_steps": 5})  # batch norm in training mode refuses a single image
    runs = [relearn(model, FORGET, FORGET, 1.0, one, seed) for seed in (0, 0)]
    assert runs[0] == runs[1]
    assert model.training
    assert model[1].num_batches_tracked == 0


class _Taught(nn.Module):
    """Right on an image from the look on that is written in its first pixel; counts looks at images."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.images = -1.0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return F.one_hot((x[:, 0] > self.looks).long(), 2).float()


@given(
    known_from=st.lists(st.integers(0, 6), min_size=1, max_size=3 * LOOKED),
    goal=st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0)),
)
def test_a_goal_is_watched_as_if_every_image_were_looked_at(known_from: list[int], goal: float) -> None:
    """Whatever is looked at first: images are class 0 and are told right from a look of their own on."""
    x, y = torch.tensor(known_from).float()[:, None], torch.zeros(len(known_from), dtype=torch.int64)
    model, watch = _Taught(), _Watch((x, y), goal)
    for look in (3, 0, 5, 6, 1, 2, 6):  # some are forgotten again
        model.looks = float(look)
        assert watch.reached(model) == (sum(at <= look for at in known_from) / len(known_from) >= goal - ROUNDING)


def test_what_was_wrong_is_looked_at_first() -> None:
    """Of 1,000 images the last hundred are wrong: they are found once; from then on no others are looked at."""
    x, y = torch.zeros(1000, 1), torch.zeros(1000, dtype=torch.int64)
    x[900:] = 1
    model, watch = _Taught(), _Watch((x, y), 0.95)
    model.looks = 0.0
    assert not watch.reached(model)
    assert 900 < model.images < 1000
    model.images = 0
    assert not watch.reached(model)
    assert 51 <= model.images < 51 + LOOKED  # at 51 wrong ones the goal is out of reach


def test_19_of_20_is_95_of_100() -> None:
    """In float32 it is a hair below."""
    x, y = images((0,), 20, 0)
    y = y.index_fill(0, torch.tensor([3]), 1)
    model = nn.Linear(12, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    assert relearn(model, (x, y), (x, y), goal_of(1.0), QUICK).steps == 0


def test_goal() -> None:
    assert goal_of(0.9) == pytest.approx(0.85)
    assert goal_of(0.02) == 0
    for bad in (1.2, -0.1, math.nan):
        with pytest.raises(ValueError, match="original's accuracy"):
            goal_of(bad)


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), part=st.floats(0.01, 1), seed=st.integers(0, 100))
def test_taught_is_a_part_of_each_class(sizes: list[int], part: float, seed: int) -> None:
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    rows = taught(y, part, seed)
    assert len(rows.unique()) == len(rows)
    assert torch.equal(rows, rows.sort().values)
    assert torch.bincount(y[rows], minlength=len(sizes)).tolist() == [max(1, round(part * n)) for n in sizes]
    assert torch.equal(rows, taught(y, part, seed))


def _ended(steps: int, censored: bool = False) -> Relearned:
    return Relearned(steps, censored)


@pytest.mark.parametrize(
    ("unlearned", "retrained_", "value", "bound", "text"),
    [
        (_ended(4), _ended(10), 0.4, Bound.EXACT, "0.40"),
        (_ended(0), _ended(10), 0.0, Bound.EXACT, "0.00"),
        (_ended(0), _ended(0), 1.0, Bound.EXACT, "1.00"),
        (_ended(50, True), _ended(10), 5.0, Bound.AT_LEAST, "≥ 5.00"),
        (_ended(5), _ended(50, True), 0.1, Bound.AT_MOST, "≤ 0.10"),
        (_ended(50, True), _ended(50, True), math.nan, Bound.UNKNOWN, "–"),
        (_ended(3), _ended(0), math.nan, Bound.UNKNOWN, "–"),
        (_ended(50, True), _ended(0), math.nan, Bound.UNKNOWN, "–"),
    ],
)
def test_ratio_tells_what_it_is_worth(
    unlearned: Relearned, retrained_: Relearned, value: float, bound: Bound, text: str
) -> None:
    got = relearn_ratio(unlearned, retrained_)
    assert (got.bound, str(got)) == (bound, text)
    assert got.value == pytest.approx(value, nan_ok=True)
    assert got.exact == pytest.approx(value if bound is Bound.EXACT else math.nan, nan_ok=True)


def test_resurfacing(original: nn.Module, retrained: nn.Module) -> None:
    """Retain images alone bring nothing back in a model that never knew, and do in one whose head was shifted a little."""
    assert isinstance(original, nn.Sequential)
    before = copy.deepcopy(retrained.state_dict())
    never = resurfaced(retrained, FORGET, RETAIN, TRAINING)
    assert (never.before, never.after, never.rise) == (0, 0, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in retrained.state_dict().items())
    hidden = copy.deepcopy(original)
    with torch.no_grad():
        hidden[2].bias[0] += 8  # class 0 drowns out the others, which retain images of class 1 put right
    back = resurfaced(hidden, FORGET, RETAIN, TRAINING)
    assert back.before < 0.4
    assert back.rise > 0.5


def test_refuses() -> None:
    model, empty = net(), (torch.empty(0, 12), torch.empty(0, dtype=torch.int64))
    short: tuple[Tensor, Tensor] = (FORGET[0], FORGET[1][:3])
    for tuned, judged, message in (
        (empty, FORGET, "tuned images: expected at least one, and a label for each, got 0"),
        (FORGET, empty, "judged images"),
        (short, FORGET, r"got 40 and labels of \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            relearn(model, tuned, judged, 0.5)
    with pytest.raises(ValueError, match="goal"):
        relearn(model, FORGET, FORGET, 1.5)
    with pytest.raises(ValueError, match="retain images"):
        after_retain_epoch(model, empty, TRAINING)
    with pytest.raises(ValueError, match="forget images"):
        resurfaced(model, empty, RETAIN, TRAINING)
    for y, part in ((empty[1], 0.1), (FORGET[1], 0.0), (FORGET[1], 1.1)):
        with pytest.raises(ValueError, match="expected forget images and a part"):
            taught(y, part)
    with pytest.raises(ValidationError):
        RelearnSettings(most_steps=0)
