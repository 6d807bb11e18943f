"""Targets: distributions that never name the forgotten class, or that are exactly as uncertain as held-out data."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from excise.client.unlearning.boundary import path_losses
from excise.client.unlearning.targets import calibrated, difficulty, make_targets, nearest, soft, topk, wanted_losses
from excise.common.settings import TargetSettings


def _random(seed: int, t: int, n: int, c: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    logits_TNC = scale * torch.randn(t, n, c, generator=generator)
    return logits_TNC, torch.randint(c, (n,), generator=generator)


def _losses(q_NC: Tensor, y_N: Tensor) -> Tensor:
    return -q_NC.gather(1, y_N[:, None])[:, 0].log()


# --- classes ---------------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([[5.0, 1.0, 2.0, -1.0], [0.0, 3.0, 1.0, 2.0], [0.0, 0.0, -9.0, 9.0]])
Y = torch.tensor([0, 2, 3])


def test_nearest_is_the_largest_other_class() -> None:
    assert nearest(LOGITS, Y).argmax(1).tolist() == [2, 1, 0]


def test_nearest_without_the_mask_repeats_the_published_code() -> None:
    q_NC = nearest(LOGITS, Y, mask_true_class=False)
    assert q_NC.argmax(1).tolist() == [0, 1, 3]
    assert q_NC.argmax(1).tolist() == LOGITS.argmax(1).tolist()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), c=st.integers(2, 6), tau=st.floats(0.1, 10), k=st.integers(1, 8))
def test_class_targets_are_distributions_without_the_true_class(seed: int, n: int, c: int, tau: float, k: int) -> None:
    logits_TNC, y_N = _random(seed, 2, n, c)
    logits_NC = logits_TNC[-1]
    hard_NC, soft_NC, some_NC = nearest(logits_NC, y_N), soft(logits_NC, y_N, tau), topk(logits_NC, y_N, tau, k)
    for q_NC in (hard_NC, soft_NC, some_NC):
        assert q_NC.dtype == torch.float32
        assert q_NC.isfinite().all()
        torch.testing.assert_close(q_NC.sum(1), torch.ones(n))
        assert (q_NC.gather(1, y_N[:, None]) == 0).all()
        assert torch.equal(q_NC.argmax(1), hard_NC.argmax(1))
    assert ((some_NC > 0).sum(1) <= min(k, c - 1)).all()
    torch.testing.assert_close(some_NC[:, :], topk(logits_NC + 1, y_N, tau, k), rtol=1e-3, atol=1e-5)


def test_topk_keeps_the_k_largest() -> None:
    q_NC = topk(LOGITS[:2], Y[:2], tau=1.0, k=2)
    assert [row.nonzero().flatten().tolist() for row in q_NC] == [[1, 2], [1, 3]]
    torch.testing.assert_close(q_NC[0, 2] / q_NC[0, 1], torch.tensor(math.e))
    torch.testing.assert_close(topk(LOGITS, Y, 2.0, 3), soft(LOGITS, Y, 2.0))
    torch.testing.assert_close(topk(LOGITS[:2], Y[:2], 1.0, 1), nearest(LOGITS[:2], Y[:2]))


def test_temperature_flattens() -> None:
    ratio = soft(LOGITS[:1], Y[:1], tau=2.0)[0]
    torch.testing.assert_close((ratio[2] / ratio[1]).log(), torch.tensor(0.5))


def test_make_targets_reads_the_end_of_the_path() -> None:
    logits_TNC = torch.stack([LOGITS.flip(1), LOGITS])
    for kind, expected in {
        "nearest": nearest(LOGITS, Y),
        "soft": soft(LOGITS, Y, 1.5),
        "topk": topk(LOGITS, Y, 1.5, 2),
    }.items():
        assert torch.equal(make_targets(logits_TNC, Y, TargetSettings(kind=kind, tau=1.5, k=2)), expected)
    unmasked = TargetSettings(kind="nearest", mask_true_class=False)
    assert torch.equal(make_targets(logits_TNC, Y, unmasked), nearest(LOGITS, Y, False))
    reference_Q = torch.tensor([0.1, 1.0])
    for overshoot in (1.0, 2.5):
        by_class = {c: (c + 1) * reference_Q for c in Y.tolist()}  # each image is alone in its class here
        aimed = make_targets(logits_TNC, Y, TargetSettings(overshoot=overshoot), by_class)
        for i, c in enumerate(Y.tolist()):
            alone = calibrated(logits_TNC[:, i : i + 1], Y[i : i + 1], overshoot * by_class[c])
            assert torch.equal(aimed[i : i + 1], alone)
    with pytest.raises(ValueError, match="reference"):
        make_targets(logits_TNC, Y, TargetSettings(kind="calibrated"))


# --- calibrated ------------------------------------------------------------------------------------------------------------

_references = st.lists(st.floats(2**-13, 9.0, width=32), min_size=2, max_size=20).map(sorted)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    t=st.integers(1, 7),
    n=st.integers(1, 9),
    c=st.integers(2, 5),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    reference=_references,
)
def test_losses_are_the_references_quantiles(seed: int, t: int, n: int, c: int, scale: float, reference: list[float]) -> None:
    logits_TNC, y_N = _random(seed, t, n, c, scale)
    reference_Q = torch.tensor(reference)
    q_NC = calibrated(logits_TNC, y_N, reference_Q)
    assert q_NC.isfinite().all()
    assert (q_NC >= 0).all()
    torch.testing.assert_close(q_NC.sum(1), torch.ones(n))
    levels = torch.linspace(0, 1, n).double() if n > 1 else torch.tensor([0.5]).double()
    expected = torch.quantile(reference_Q.double(), levels)
    torch.testing.assert_close(_losses(q_NC, y_N).sort().values.double(), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 9), reference=_references)
def test_harder_images_get_larger_losses(seed: int, n: int, reference: list[float]) -> None:
    logits_TNC, y_N = _random(seed, 4, n, 3)
    reference_Q = torch.tensor(reference)
    mean_N = path_losses(logits_TNC, y_N).clamp_max(reference[-1]).mean(0)
    losses_N = _losses(calibrated(logits_TNC, y_N, reference_Q), y_N)
    by_difficulty = losses_N[mean_N.argsort(stable=True)]
    assert (by_difficulty.diff() >= -1e-4).all()


def test_difficulty_is_the_clamped_mean() -> None:
    losses_TN = torch.tensor([[0.0, 0.5], [9.0, 1.5]])
    assert difficulty(losses_TN, 2.0).tolist() == [1.0, 1.0]
    assert difficulty(losses_TN, 100.0).tolist() == [4.5, 1.0]


def test_wanted_losses_by_rank() -> None:
    reference_Q = torch.tensor([0.0, 1.0, 4.0])
    assert wanted_losses(torch.tensor([0.3, 0.1, 0.2]), reference_Q).tolist() == [4.0, 0.0, 1.0]
    assert wanted_losses(torch.tensor([7.0, 3.0]), reference_Q).tolist() == [4.0, 0.0]
    five = wanted_losses(torch.arange(5.0), reference_Q)
    assert five.tolist() == [0.0, 0.5, 1.0, 2.5, 4.0]


def test_a_single_image_gets_the_median() -> None:
    assert wanted_losses(torch.tensor([0.3]), torch.tensor([0.0, 1.0, 4.0])).tolist() == [1.0]
    assert wanted_losses(torch.tensor([0.3]), torch.tensor([1.0, 2.0])).tolist() == [1.5]
    assert wanted_losses(torch.tensor([0.3]), torch.tensor([2.0])).tolist() == [2.0]
    assert wanted_losses(torch.tensor([0.3, 0.1]), torch.tensor([2.0])).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("share", [0.1, 0.35, 0.9])
def test_target_is_the_path_point_of_the_wanted_loss(share: float) -> None:
    points = torch.tensor([[6.0, 0.0, -1.0], [3.0, 1.0, -1.0], [0.0, 1.0, 4.0]])  # loss of class 0 rises along it
    y_N = torch.tensor([0])
    between = torch.lerp(points[1], points[2], share)[None]
    wanted = F.cross_entropy(between, y_N)
    q_NC = calibrated(points[:, None], y_N, wanted.repeat(3))
    torch.testing.assert_close(q_NC, between.softmax(1), rtol=1e-4, atol=1e-6)


def test_target_is_the_first_point_that_has_the_loss() -> None:
    points = torch.tensor([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 2.0]])  # towards 1, back, towards 2
    q_NC = calibrated(points[:, None], torch.tensor([0]), torch.tensor([1.0, 1.0]))
    assert q_NC[0, 1] > q_NC[0, 2]


def test_wanted_losses_outside_the_path_are_met() -> None:
    points = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.0, -1.0]])  # losses 0.41 to 0.60
    y_N = torch.tensor([0])
    for wanted in (0.01, 5.0):
        q_NC = calibrated(points[:, None], y_N, torch.tensor([wanted, wanted]))
        torch.testing.assert_close(_losses(q_NC, y_N), torch.tensor([wanted]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(q_NC[0, 1] / q_NC[0, 2], torch.tensor(math.e))  # the others keep their ratio


def test_extreme_logits_give_no_nan() -> None:
    logits_TNC = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]], [[0.0, 0.0]]])
    for wanted in (0.0, 1.0, 1e6):
        q_NC = calibrated(logits_TNC, torch.tensor([0]), torch.tensor([wanted, wanted]))
        assert q_NC.isfinite().all()
        torch.testing.assert_close(q_NC.sum(1), torch.ones(1))


@pytest.mark.parametrize("kind", ["nearest", "soft", "topk"])
def test_no_class_that_is_forgotten_is_a_target_for_another(kind: str) -> None:
    logits_NC = torch.tensor([[9.0, 8.0, 1.0, 2.0], [8.0, 9.0, 2.0, 1.0]])
    logits_TNC = logits_NC[None]
    y_N = torch.tensor([0, 1])
    settings = TargetSettings(kind=kind, k=3)
    alone = make_targets(logits_TNC, y_N, settings)
    assert alone.argmax(1).tolist() == [1, 0]
    together = make_targets(logits_TNC, y_N, settings, forgotten=(0, 1))
    assert together.argmax(1).tolist() == [3, 2]
    assert float(together[:, :2].sum()) == 0
    assert together.sum(1).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="no class is left"):
        make_targets(logits_TNC, y_N, settings, forgotten=(0, 1, 2, 3))
