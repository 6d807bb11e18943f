"""Attacks on data of which it is known how well they must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Generator, Tensor
from torchmetrics.functional.classification import binary_auroc

from excise.simulations.judging.membership import loss_attack, output_attack
from excise.simulations.judging.roc import attack, hits

_scores = st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-5, 5, width=32), min_size=1, max_size=15)


# --- judging scores ---------------------------------------------------------------------------------------------------------


def test_same_and_separate_distributions() -> None:
    rng = np.random.default_rng(0)
    alike = rng.normal(size=1000)
    same = attack(alike, alike)
    assert same.low < 0.5 < same.high
    assert same.auc == pytest.approx(0.5, abs=1e-9)
    assert same.tpr == 0.01
    drawn = attack(rng.normal(size=10_000), rng.normal(size=10_000), resamples=100)
    assert drawn.auc == pytest.approx(0.5, abs=0.015)
    assert drawn.tpr == pytest.approx(0.01, abs=0.005)
    apart = attack(10 + rng.random(50), rng.random(40))
    assert (apart.low, apart.auc, apart.high, apart.tpr) == (1, 1, 1, 1)
    assert (apart.members, apart.others) == (50, 40)
    ties = attack(np.zeros(5), np.zeros(7))
    assert (ties.low, ties.auc, ties.high, ties.tpr) == (0.5, 0.5, 0.5, 0)


def test_gaussian_auc_is_known() -> None:
    """AUC of two normal distributions a distance d apart is Φ(d/√2); hits at 1 % are Φ(d − z)."""
    rng = np.random.default_rng(1)
    got = attack(rng.normal(1.5, 1, 20_000), rng.normal(size=20_000), resamples=200)
    assert got.auc == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.01)
    assert got.tpr == pytest.approx(norm.cdf(1.5 - norm.ppf(0.99)), abs=0.02)


@settings(max_examples=40)
@given(members=_scores, others=_scores, fpr=st.sampled_from([0.0, 0.01, 0.2, 0.5]))
def test_attack_is_torchmetrics_and_hits_keep_their_promise(members: list[float], others: list[float], fpr: float) -> None:
    m, o = np.array(members), np.array(others)
    scores, truth = torch.tensor([*members, *others]), torch.tensor([1] * len(members) + [0] * len(others))
    got = attack(m, o, fpr=fpr, resamples=20)
    assert got.auc == pytest.approx(float(binary_auroc(_ranks(scores), truth)), abs=1e-6)
    assert attack(o, m, resamples=1).auc == pytest.approx(1 - got.auc)
    # The best of all thresholds that raise no more false alarms than allowed, counted out.
    allowed = [t for t in (-np.inf, *o) if (o > t).sum() <= fpr * len(o) + 1e-9]
    assert got.tpr == max(float((m > t).mean()) for t in allowed)


def _ranks(scores: Tensor) -> Tensor:
    """Ranks in [0, 1], ties equal: torchmetrics takes what is outside [0, 1] for logits, and a sigmoid can tie."""
    values = scores.unique()
    return torch.searchsorted(values, scores) / len(values)


def test_interval_covers_and_knows_patients() -> None:
    """Of 100 samples nine in ten cover 0.5; where every image stands ten times, only if its copies are drawn together."""
    rng, covered, naive = np.random.default_rng(2), 0, 0
    for _ in range(100):
        m, o = np.repeat(rng.normal(size=20), 10), np.repeat(rng.normal(size=20), 10)
        patients = np.repeat(np.arange(20), 10).tolist(), np.repeat(np.arange(20, 40), 10).tolist()
        together, apart = attack(m, o, groups=patients, resamples=100), attack(m, o, resamples=100)
        covered += together.low <= 0.5 <= together.high
        naive += apart.low <= 0.5 <= apart.high
    assert covered >= 88
    assert naive <= 70


def test_attack_is_seeded_and_refuses() -> None:
    m, o = np.arange(5.0), np.arange(7.0)
    assert attack(m, o, seed=3) == attack(m, o, seed=3)
    assert attack(m, o, seed=3) != attack(m, o, seed=4)
    assert hits(m, o, 1 - 1e-12) == 0.8  # all others but the lowest may be above
    assert hits(m, o, 0.29) == 0  # of 7 others one may be above: 5 is the threshold
    for args, message in (
        (([], o), "members' scores"),
        ((m, []), "others' scores"),
        ((m, [np.nan]), "finite numbers, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(*args)
    with pytest.raises(ValueError, match="groups of 5 and 7 scores, got 5 and 5"):
        attack(m, o, groups=(range(5), range(5)))
    for wrong in ({"fpr": 1.0}, {"level": 1.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="expected 0 ≤ fpr < 1"):
            attack(m, o, **wrong)  # type: ignore[arg-type]


# --- attacks with one model -------------------------------------------------------------------------------------------------


def outputs(images: int, margin: float, seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits in which the right class is ahead by about `margin`."""
    generator = Generator().manual_seed(seed)
    y = torch.randint(classes, (images,), generator=generator)
    return torch.randn(images, classes, generator=generator).scatter_add(
        1, y[:, None], torch.full((images, 1), float(margin))
    ), y


def test_loss_attack() -> None:
    aucs = [loss_attack(outputs(300, 1, 2 * i), outputs(300, 1, 2 * i + 1)).auc for i in range(9)]
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.03)  # 3.8 standard deviations
    memorised = loss_attack(outputs(200, 100, 0), outputs(200, 0, 1))
    assert (memorised.auc, memorised.tpr) == (1, 1)
    # Losses that both round to 0 in float32 still have an order.
    assert loss_attack(outputs(100, 300, 0), outputs(100, 200, 1)).auc == 1
    with pytest.raises(ValueError, match="held-out images: expected at least one image"):
        loss_attack(outputs(5, 1, 0), (torch.empty(0, 4), torch.empty(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match="forget set: expected 5 labels"):
        loss_attack((outputs(5, 1, 0)[0], torch.tensor([1])), outputs(5, 1, 0))


def test_output_attack() -> None:
    """Trained-on images are surer than unseen ones; a forget set like either is called so."""
    retain, held_out = outputs(300, 12, 0)[0], outputs(150, 0, 1)[0]
    remembered = output_attack(retain, held_out, outputs(100, 12, 2)[0])
    assert remembered.auc > 0.99
    assert remembered.members > 0.98
    forgotten = output_attack(retain, held_out, outputs(100, 0, 3)[0])
    assert forgotten.members < 0.02
    assert forgotten.score < 0.1
    assert output_attack(retain, held_out, outputs(100, 0, 3)[0]) == forgotten


def test_output_attack_that_learned_nothing_says_so() -> None:
    got = output_attack(outputs(300, 3, 0)[0], outputs(300, 3, 1)[0], outputs(100, 3, 2)[0])
    assert got.auc == pytest.approx(0.5, abs=0.08)
    assert got.score == pytest.approx(0.5, abs=0.1)


def test_output_attack_knows_no_class_names() -> None:
    """Retain and held-out images that differ by which class they are of alone cannot be told apart."""
    retain, held_out = torch.tensor([[5.0, 0.0, 0.0]]).repeat(50, 1), torch.tensor([[0.0, 0.0, 5.0]]).repeat(50, 1)
    assert output_attack(retain, held_out, retain).auc == 0.5


def test_output_attack_refuses() -> None:
    good = outputs(10, 1, 0)[0]
    for args, message in (
        ((good[:4], good, good), "at least 5 retain and 5 held-out images, got 4 and 10"),
        ((good, good[:, :3], good), "held-out images: expected logits of 4 classes"),
        ((good, good, good[:0]), "forget set: expected at least one image"),
        ((good / 0, good, good), "retain set: expected finite logits"),
    ):
        with pytest.raises(ValueError, match=message):
            output_attack(*args)
