"""The overshoot that corrects itself: whole while the student is short of its mark, less below it, and the right way round."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from excise.client.unlearning.correction import MEASURED, corrected_overshoot, is_corrected, measured_images
from excise.common.settings import PRESETS, TargetSettings

SETTINGS = TargetSettings(overshoot=2.0, band=0.1)
REFERENCE_Q = torch.full((8,), -torch.tensor(0.6).log().item())  # every unseen image: 0.6 for the true class


class Says(nn.Module):
    """Gives the true class, 0, the same probability on every image; notes how many it was shown."""

    def __init__(self, p: float, labels: bool = False) -> None:
        super().__init__()
        logit = torch.tensor(p).logit()
        self.logits = torch.stack([logit, -logit]) if labels else torch.stack([logit, torch.tensor(0.0)])
        self.shown = 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x)
        return self.logits.expand(len(x), 2)


def paths(n: int) -> Tensor:
    """Logits of paths that begin at certainty and end at the other class, each at its own pace."""
    pace_N = torch.linspace(0.5, 2.0, n)
    return torch.stack([torch.stack([4 - t * pace_N, torch.zeros(n)], dim=1) for t in range(9)])


def factor(p: float, n: int = 12, settings: TargetSettings = SETTINGS) -> float:
    return corrected_overshoot(Says(p), torch.rand(n, 1, 4, 4), paths(n), torch.zeros(n).long(), settings, REFERENCE_Q)


def test_it_overshoots_while_the_student_is_above_its_mark() -> None:
    assert factor(0.95) == pytest.approx(2.0)
    assert factor(0.6) == pytest.approx(2.0)


def test_it_falls_back_below_the_mark_and_then_pulls_the_student_up() -> None:
    assert factor(0.55) == pytest.approx(2**0.5)
    assert factor(0.5) == pytest.approx(1.0)
    assert factor(0.45) == pytest.approx(2**-0.5)
    assert factor(0.1) == pytest.approx(0.5)


@given(low=st.floats(0.02, 0.97), step=st.floats(0, 0.5), band=st.floats(0.01, 1), overshoot=st.floats(1, 10))
def test_a_more_certain_student_is_never_asked_for_less(low: float, step: float, band: float, overshoot: float) -> None:
    settings = TargetSettings(overshoot=overshoot, band=band)
    less, more = factor(low, 3, settings), factor(min(low + step, 0.98), 3, settings)
    assert 1 / overshoot * (1 - 1e-6) <= less <= more * (1 + 1e-6) <= overshoot * (1 + 1e-5)


def test_it_looks_at_a_few_images_of_every_difficulty() -> None:
    n = 5 * MEASURED
    student = Says(0.5)
    corrected_overshoot(student, torch.rand(n, 1, 2, 2), paths(n), torch.zeros(n).long(), SETTINGS, REFERENCE_Q)
    assert student.shown == MEASURED == measured_images(n)
    assert measured_images(3) == 3
    # Of losses that differ, the mark of the few is near the mark of all: the mean probability of the reference.
    reference_Q = torch.linspace(0.01, 3.0, 64)
    mark = float((-reference_Q).exp().mean())
    at_mark = corrected_overshoot(Says(mark), torch.rand(n, 1, 2, 2), paths(n), torch.zeros(n).long(), SETTINGS, reference_Q)
    assert at_mark == pytest.approx(2.0, rel=0.1)


def test_labels_are_measured_where_they_are_to_be_forgotten() -> None:
    n = 6
    y_NL = torch.ones(n, 2)  # the student gives 0.8 to the first, 0.2 to the second; the mark of either is 0.6
    reference_QL = REFERENCE_Q[:, None].expand(-1, 2)
    logits_TNL = paths(n).flip(2) + paths(n)
    arguments = (Says(0.8, labels=True), torch.rand(n, 1, 2, 2), logits_TNL, y_NL, SETTINGS, reference_QL)
    assert corrected_overshoot(*arguments, forgotten=[0]) == pytest.approx(2.0)
    assert corrected_overshoot(*arguments, forgotten=[1]) == pytest.approx(0.5)
    assert corrected_overshoot(*arguments) == pytest.approx(1.0)  # on average 0.1 below, a whole band


def test_when_it_is_corrected() -> None:
    assert [is_corrected(SETTINGS, r) for r in range(3)] == [False, True, True]
    assert not is_corrected(TargetSettings(band=0.0), 1)
    assert not is_corrected(PRESETS["classes"].target.model_copy(update={"band": 0.1}), 1)
    with pytest.raises(ValueError, match="none is set"):
        corrected_overshoot(
            Says(0.5), torch.rand(3, 1, 2, 2), paths(3), torch.zeros(3).long(), TargetSettings(band=0), REFERENCE_Q
        )


def test_the_student_is_left_as_it_was() -> None:
    student = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    before = {name: x.clone() for name, x in student.state_dict().items()}
    corrected_overshoot(
        student,
        torch.rand(9, 1, 2, 2, generator=Generator().manual_seed(0)),
        paths(9),
        torch.zeros(9).long(),
        SETTINGS,
        REFERENCE_Q,
    )
    assert student.training
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())
