"""The overshoot that corrects itself: whole while the student is short of its mark, less below it, and the right way round."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from excise.client.unlearning.correction import MEASURED, corrected_overshoot, is_corrected, measured_rows
from excise.common.settings import PRESETS, TargetSettings

SETTINGS = TargetSettings(overshoot=2.0, band=0.1)
REFERENCE_Q = torch.full((8,), -torch.tensor(0.6).log().item())  # every unseen image: 0.6 for the true class


class Says(nn.Module):
    """Gives the class 0 the same probability on every image; of two labels p to the first and 1 − p to the second."""

    def __init__(self, p: float, labels: bool = False) -> None:
        super().__init__()
        logit = torch.tensor(p).logit()
        self.logits = torch.stack([logit, -logit]) if labels else torch.stack([logit, torch.tensor(0.0)])

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), 2)


def paths(n: int) -> Tensor:
    """Logits of paths that begin at certainty and end at the other class, each at its own pace."""
    pace_N = torch.linspace(0.5, 2.0, n)
    return torch.stack([torch.stack([4 - t * pace_N, torch.zeros(n)], dim=1) for t in range(9)])


def factor(p: float, n: int = MEASURED, settings: TargetSettings = SETTINGS) -> float:
    return float(corrected_overshoot(Says(p), torch.rand(n, 1, 4, 4), torch.zeros(n).long(), settings, {0: REFERENCE_Q}))


def test_it_overshoots_while_the_student_is_above_its_mark() -> None:
    assert factor(0.95) == pytest.approx(2.0)
    assert factor(0.6) == pytest.approx(2.0)


def test_it_falls_back_below_the_mark_and_then_pulls_the_student_up() -> None:
    assert factor(0.55) == pytest.approx(2**0.5)
    assert factor(0.5) == pytest.approx(1.0)
    assert factor(0.45) == pytest.approx(2**-0.5)
    assert factor(0.1) == pytest.approx(0.5)


def test_the_mark_is_the_mean_probability_on_unseen_images() -> None:
    reference_Q = torch.linspace(0.01, 3.0, 64)
    mark = float((-reference_Q).exp().mean())
    images = torch.rand(MEASURED, 1, 2, 2), torch.zeros(MEASURED).long()
    for below, expected in ((0.0, 2.0), (0.05, 2**0.5), (0.1, 1.0)):
        found = corrected_overshoot(Says(mark - below), *images, SETTINGS, {0: reference_Q})
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_the_mark_follows_the_classes_of_the_images() -> None:
    y_N = torch.tensor([0, 0, 0, 1]).repeat(MEASURED // 4)  # the student gives 0.5 to either class
    marks = {0: REFERENCE_Q, 1: torch.full((8,), -math.log(0.2))}  # 0.6 and 0.2: on this mix 0.5
    found = corrected_overshoot(Says(0.5), torch.rand(MEASURED, 1, 2, 2), y_N, SETTINGS, marks)
    assert float(found) == pytest.approx(2.0)
    found = corrected_overshoot(Says(0.5), torch.rand(MEASURED, 1, 2, 2), y_N.clamp_max(0), SETTINGS, marks)
    assert float(found) == pytest.approx(1.0)


def test_a_mean_over_few_images_is_trusted_less() -> None:
    assert factor(0.5, n=MEASURED // 4) == pytest.approx(2**0.5)  # the band is twice as wide
    assert factor(0.4, n=MEASURED // 4) == pytest.approx(1.0)


@given(low=st.floats(0.02, 0.97), step=st.floats(0, 0.5), band=st.floats(0.01, 1), overshoot=st.floats(1, 10))
def test_a_more_certain_student_is_never_asked_for_less(low: float, step: float, band: float, overshoot: float) -> None:
    settings = TargetSettings(overshoot=overshoot, band=band)
    less, more = factor(low, 3, settings), factor(min(low + step, 0.98), 3, settings)
    assert 1 / overshoot * (1 - 1e-6) <= less <= more * (1 + 1e-6) <= overshoot * (1 + 1e-5)


@given(n=st.integers(1, 300), looks=st.integers(1, 150), min_count=st.integers(1, 150))
def test_it_looks_at_all_images_or_leaves_enough_out(n: int, looks: int, min_count: int) -> None:
    rows = measured_rows(paths(n), torch.zeros(n).long(), looks, min_count)
    assert len(rows.unique()) == len(rows)
    assert len(rows) == n or (len(rows) == max(looks, min_count) and n - len(rows) >= min_count)


def test_it_looks_at_images_of_every_difficulty() -> None:
    n = 5 * MEASURED
    logits_TNC = paths(n)[:, torch.randperm(n, generator=Generator().manual_seed(0))]
    hardest_first = logits_TNC[-1, :, 0].argsort()
    place = torch.empty(n).scatter(0, hardest_first, torch.arange(float(n)))
    assert place[measured_rows(logits_TNC, torch.zeros(n).long(), MEASURED)].sort().values.diff().tolist() == [5.0] * (
        MEASURED - 1
    )


def test_each_label_has_its_own_where_it_is_to_be_forgotten() -> None:
    n = MEASURED
    y_NL = torch.ones(n, 2)  # the student gives 0.8 to the first, 0.2 to the second; the mark of either is 0.6
    y_NL[: n // 2, 0] = 0  # where a label is absent, its absence is what is true: 0.2 for the first
    arguments = (Says(0.8, labels=True), torch.rand(n, 1, 2, 2), y_NL, SETTINGS, dict.fromkeys(range(4), REFERENCE_Q))
    assert corrected_overshoot(*arguments).tolist() == pytest.approx([1.0, 0.5])  # (0.8 + 0.2)/2 is a whole band below
    assert corrected_overshoot(*arguments, forgotten=[0]).tolist() == pytest.approx([2.0, 2.0])
    assert corrected_overshoot(*arguments, forgotten=[1]).tolist() == pytest.approx([2.0, 0.5])


def test_a_label_that_few_images_have_is_trusted_less() -> None:
    y_NL = torch.ones(MEASURED, 2)
    y_NL[MEASURED // 4 :, 1] = 0
    student, reference = Says(0.5, labels=True), dict.fromkeys(range(4), REFERENCE_Q)  # says 0.5 and 0.5, the mark is 0.6
    few = corrected_overshoot(student, torch.rand(MEASURED, 1, 2, 2), y_NL, SETTINGS, reference, forgotten=[0, 1])
    assert few.tolist() == pytest.approx([1.0, 2**0.5])  # the second band is twice as wide


def test_when_it_is_corrected() -> None:
    assert [is_corrected(SETTINGS, r) for r in range(3)] == [False, True, True]
    assert not is_corrected(TargetSettings(band=0.0), 1)
    assert not is_corrected(TargetSettings(overshoot=1.0), 1)  # there is nothing to take back
    assert not is_corrected(PRESETS["classes"].target.model_copy(update={"band": 0.1}), 1)
    with pytest.raises(ValueError, match="none is set"):
        factor(0.5, settings=TargetSettings(band=0))


def test_the_student_is_left_as_it_was() -> None:
    student = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    before = {name: x.clone() for name, x in student.state_dict().items()}
    corrected_overshoot(student, torch.rand(9, 1, 2, 2), torch.zeros(9).long(), SETTINGS, {0: REFERENCE_Q})
    assert student.training
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())
