"""U-LiRA and RMIA on toy models whose traces, or want of them, are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from excise.simulations.judging import rmia as rmia_module
from excise.simulations.judging.checks import Bools, Floats
from excise.simulations.judging.confidence import scaled_confidence, stacked_confidence
from excise.simulations.judging.rmia import rmia, scores
from excise.simulations.judging.ulira import EACH_FROM, judged, leave_one_out, score, ulira


def shadow(models: int, images: int, trace: float, seed: int) -> tuple[Floats, Bools]:
    """Confidences (M, N): each image has its own difficulty; a model that unlearned it keeps `trace` of its confidence."""
    rng = np.random.default_rng(seed)
    unlearned = np.zeros((models, images), dtype=bool)
    for n in range(images):
        unlearned[rng.permutation(models)[: models // 2], n] = True
    return 3 * rng.normal(size=images) + rng.normal(size=(models, images)) + trace * unlearned, unlearned


def as_logits(confidence_MN: Floats) -> torch.Tensor:
    """Logits of two classes whose scaled confidence in class 0 is as given, (M, N, 2)."""
    return torch.stack([torch.from_numpy(confidence_MN), torch.zeros(confidence_MN.shape, dtype=torch.float64)], dim=-1)


def labels(images: int) -> torch.Tensor:
    return torch.zeros(images, dtype=torch.int64)


# --- confidence -------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16), images=st.integers(1, 20), classes=st.integers(2, 6))
def test_scaled_confidence_is_the_log_odds(seed: int, images: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(images, classes, generator=generator), torch.randint(classes, (images,), generator=generator)
    p = logits.double().softmax(1)[torch.arange(images), y]
    assert scaled_confidence(logits, y) == pytest.approx((p / (1 - p)).log().numpy(), abs=1e-9)
    assert stacked_confidence(logits.expand(3, -1, -1), y) == pytest.approx(np.tile(scaled_confidence(logits, y), (3, 1)))


def test_scaled_confidence_of_a_sure_model() -> None:
    assert scaled_confidence(torch.tensor([[300.0, 0.0], [0.0, 300.0]]), torch.tensor([0, 0])).tolist() == [300, -300]


# --- U-LiRA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [1.0, 2.0])
@pytest.mark.parametrize("models", [40, EACH_FROM + 16])
def test_ulira_finds_what_a_gaussian_trace_leaves(trace: float, models: int) -> None:
    """The best attacker there can be has AUC Φ(d/√2); a loss threshold, which knows no image's difficulty, far less."""
    confidence, unlearned = shadow(models, 150, trace, seed=0)
    got = ulira(as_logits(confidence), labels(150), unlearned)
    best = norm.cdf(trace / np.sqrt(2))
    assert best - 0.035 < got.auc < best + 0.015  # means and variances are of a few dozen models
    threshold = np.subtract.outer(confidence[unlearned], confidence[~unlearned])
    assert (threshold > 0).mean() < got.auc - 0.05
    assert got.low < got.auc < got.high


def test_ulira_without_a_trace() -> None:
    confidence, unlearned = shadow(40, 200, 0.0, seed=1)
    got = ulira(as_logits(confidence), labels(200), unlearned)
    assert got.auc == pytest.approx(0.5, abs=0.03)
    assert got.tpr == pytest.approx(0.01, abs=0.01)


def test_ulira_finds_over_unlearning_too() -> None:
    """A model that is *less* sure of what it unlearned than one that never saw it gives it away as well."""
    confidence, unlearned = shadow(40, 100, -3.0, seed=2)
    assert ulira(as_logits(confidence), labels(100), unlearned).auc > 0.95


def test_ulira_of_a_memorised_set() -> None:
    confidence, unlearned = shadow(12, 60, 100.0, seed=3)
    got = ulira(as_logits(confidence), labels(60), unlearned)
    assert (got.auc, got.tpr) == (1, 1)


def test_ulira_score_is_the_ratio_of_densities() -> None:
    """Against scipy, image by image, with variances of its own and with shared ones."""
    for models in (EACH_FROM, 20):
        confidence, unlearned = shadow(models, 8, 1.0, seed=4)
        own_model = confidence.mean(0) + 0.3
        groups = [[confidence[of[:, n], n] for n in range(8)] for of in (unlearned, ~unlearned)]
        own = [[g.std(ddof=1) for g in side] for side in groups]
        shared = [np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in side) / sum(len(g) - 1 for g in side)) for side in groups]
        expected = [
            norm.logpdf(own_model[n], groups[0][n].mean(), own[0][n] if models >= EACH_FROM else shared[0])
            - norm.logpdf(own_model[n], groups[1][n].mean(), own[1][n] if models >= EACH_FROM else shared[1])
            for n in range(8)
        ]
        assert score(own_model, confidence, unlearned) == pytest.approx(expected)


def test_a_judged_model_is_not_its_own_shadow() -> None:
    confidence, unlearned = shadow(10, 5, 1.0, seed=5)
    moved = confidence.copy()
    moved[3] += 7
    assert leave_one_out(confidence, unlearned)[3] == pytest.approx(
        score(confidence[3], np.delete(moved, 3, 0), np.delete(unlearned, 3, 0))
    )


def test_a_model_is_not_judged_by_those_of_its_draw() -> None:
    """Of halves each image has one in either: without both, what has no trace is told apart from neither side."""
    rng = np.random.default_rng(9)
    first = rng.random((3, 4000)) < 0.5
    halves = np.stack([first, ~first], axis=1).reshape(6, 4000)
    noise, draws = rng.normal(size=(6, 4000)), [0, 0, 1, 1, 2, 2]
    assert ulira(as_logits(noise), labels(4000), halves, draw_M=draws).auc == pytest.approx(0.5, abs=0.02)
    assert ulira(as_logits(noise), labels(4000), halves).auc < 0.48
    moved = noise.copy()
    moved[:2] += 7
    assert leave_one_out(noise, halves, draws)[0] == pytest.approx(score(noise[0], moved[2:], halves[2:]))
    pop = population(6, 300, 10)
    assert rmia(as_logits(noise), labels(4000), halves, pop, labels(300), draw_M=draws).auc == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match=r"draw of each of 6 models, got shape \(5,\)"):
        leave_one_out(noise, halves, draws[:5])


def test_models_that_all_agree_give_finite_scores() -> None:
    confidence, unlearned = shadow(8, 6, 1.0, seed=6)
    assert np.isfinite(leave_one_out(np.zeros_like(confidence), unlearned)).all()


def test_ulira_refuses() -> None:
    confidence, unlearned = shadow(8, 6, 1.0, seed=7)
    logits, y = as_logits(confidence), labels(6)
    none = unlearned.copy()
    none[:, 2] = False
    for args, message in (
        ((logits[0], y, unlearned), r"\(models, images, classes\), got shape \(6, 2\)"),
        ((logits[:0], y, unlearned[:0]), "expected logits"),
        ((logits, y, unlearned[:, :5]), r"\(8, 6\), that tells who unlearned it, got bool \(8, 5\)"),
        ((logits, y, unlearned.astype(np.int64)), "got int64"),
        ((logits, y, none), "needs 3 models that unlearned it and 3 that never saw it, got 0: train more models"),
        ((logits, y[:4], unlearned), "expected 48 labels"),
        ((logits / 0, y, unlearned), "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            ulira(*args)
    with pytest.raises(ValueError, match="the same images, got 5 and 6"):
        score(confidence[0, :5], confidence, unlearned)


# --- RMIA -------------------------------------------------------------------------------------------------------------------


def population(models: int, images: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return as_logits(3 * rng.normal(size=images) + rng.normal(size=(models, images)))


def test_rmia_of_a_memorised_and_of_an_independent_set() -> None:
    y, z = labels(100), labels(300)
    confidence, unlearned = shadow(12, 100, 0.0, seed=0)
    independent = rmia(as_logits(confidence), y, unlearned, population(12, 300, 1), z)
    assert independent.auc == pytest.approx(0.5, abs=0.04)
    # Never sure of what it did not see, always of what it saw.
    memorised = np.where(unlearned, 12.0, -3 + 0.1 * confidence)
    got = rmia(as_logits(memorised), y, unlearned, population(12, 300, 1), z)
    assert got.auc > 0.99
    assert got.tpr > 0.95


def test_rmia_beats_a_threshold_and_needs_few_models() -> None:
    confidence, unlearned = shadow(4, 400, 2.0, seed=2)
    got = rmia(as_logits(confidence), labels(400), unlearned, population(4, 300, 3), labels(300))
    threshold = (np.subtract.outer(confidence[unlearned], confidence[~unlearned]) > 0).mean()
    assert got.auc > threshold + 0.05


def test_rmia_scores_by_hand() -> None:
    """One image that some references saw, one that none did, against two of the population."""
    own_model, population_z = np.array([0.8, 0.3]), np.array([0.5, 0.4])
    reference, seen = np.array([[0.9, 0.2], [0.1, 0.4]]), np.array([[True, False], [False, False]])
    reference_z = np.array([[0.5, 0.9], [0.5, 0.7]])
    p = [(0.9 + 0.1) / 2, 0.5 * (1.3 * 0.3 + 0.7)]
    p_z = [0.5 * (1.3 * 0.5 + 0.7), 0.5 * (1.3 * 0.8 + 0.7)]
    ratio, ratio_z = own_model / p, population_z / p_z
    for gamma in (1.0, 1.9, 2.2, 4.0):
        expected = [np.mean([r / z >= gamma for z in ratio_z]) for r in ratio]
        assert scores(own_model, reference, seen, population_z, reference_z, gamma=gamma).tolist() == expected
    assert scores(own_model, reference, seen, population_z, reference_z, gamma=1.9).tolist() == [1.0, 0.0]


def test_rmia_counts_who_is_exactly_as_well_known() -> None:
    """The paper says *at least* γ."""
    p, never = np.full((1, 1), 0.5), np.zeros((1, 1), dtype=bool)
    assert scores(p[0], p, never, p[0], p, gamma=1).tolist() == [1]


def test_rmia_judges_each_model_by_the_others() -> None:
    confidence, unlearned = shadow(6, 30, 1.0, seed=8)
    y, z, pop = labels(30), labels(50), population(6, 50, 9)
    p, p_z = (rmia_module.confidences(of, c, "x") for of, c in ((as_logits(confidence), y), (pop, z)))
    rows = []
    for m in range(6):
        r, r_z, seen = (np.delete(of, m, 0) for of in (p, p_z, unlearned))
        rows.append(scores(p[m], r, seen, p_z[m], r_z))
    assert rmia(as_logits(confidence), y, unlearned, pop, z) == judged(np.stack(rows), unlearned, 0)


_p = st.floats(0.01, 1)


@settings(max_examples=60)
@given(low=_p, high=_p, others=st.lists(_p, min_size=2, max_size=2), pop=st.lists(_p, min_size=3, max_size=3))
def test_rmia_score_rises_with_confidence(low: float, high: float, others: list[float], pop: list[float]) -> None:
    low, high = sorted((low, high))
    reference = np.array([others, others])
    got = scores(
        np.array([low, high]),
        reference.mean() * np.ones((2, 2)),
        np.zeros((2, 2), bool),
        np.array(pop),
        np.array([pop]).repeat(2, 0),
    )
    assert 0 <= got[0] <= got[1] <= 1


def test_rmia_refuses() -> None:
    confidence, unlearned = shadow(8, 6, 1.0, seed=7)
    logits, y, pop, z = as_logits(confidence), labels(6), population(8, 5, 0), labels(5)
    none = np.zeros_like(unlearned)
    for args, message in (
        ((logits, y, none, pop, z), "needs 2 models that unlearned it and 2 that never saw it, got 0"),
        ((logits, y, unlearned, pop[:7], z), "the same 8 models, got of 7"),
        ((logits, y, unlearned, pop[:, :0], z[:0]), "population: expected at least one image"),
        ((logits, y, unlearned, pop / 0, z), "population: expected finite logits"),
        ((logits, y, unlearned, pop, z[:3]), "population: expected 40 labels"),
    ):
        with pytest.raises(ValueError, match=message):
            rmia(*args)
    one = np.full((1, 1), 0.5)
    never = np.zeros((1, 1), dtype=bool)
    for changed, message in (
        ({"gamma": 0.5}, "expected gamma ≥ 1"),
        ({"offline": 2.0}, "offline in"),
        ({"seen_MN": ~never}, "1 images were seen by all reference models"),
        ({"judged_N": np.array([1.5])}, r"probabilities in \(0, 1\], got 1.5 to 1.5"),
        ({"judged_N": np.array([0.0])}, r"got 0.0 to 0.0"),
        ({"population_Z": np.array([0.5, 0.5])}, "of shapes"),
    ):
        arguments = {"judged_N": one[0], "reference_MN": one, "seen_MN": never, "population_Z": one[0], "population_MZ": one}
        with pytest.raises(ValueError, match=message):
            scores(**(arguments | changed))


def test_a_hopelessly_wrong_model_still_has_a_ratio() -> None:
    p = rmia_module.confidences(torch.tensor([[[-5000.0, 0.0]]], dtype=torch.float64), labels(1), "x")
    assert p[0, 0] > 0
