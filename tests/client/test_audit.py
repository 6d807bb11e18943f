"""What a site tells of a model: aggregates over enough images, or nothing."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from excise.client.audit import effective_images, loss_profile, measure, patient_weights, told_strata
from excise.client.unlearning.inference import MOST_IMAGES, images_at_once, predict

_losses = st.lists(st.floats(0, 50), max_size=200).map(lambda values: np.array(values, dtype=np.float64))


@given(_losses, st.integers(1, 80), st.integers(1, 30), st.integers(1, 9))
def test_no_point_of_a_profile_stands_for_few_images(values: np.ndarray, points: int, min_count: int, most: int) -> None:
    weights = 1 / (1 + np.arange(len(values)) % most)
    profile = loss_profile(values, points, min_count, weights)
    if len(values) < min_count:
        assert profile == ()
        return
    assert 1 <= len(profile) <= points
    parts: list[list[int]] = [[] for _ in profile]  # slowly: which images does each point stand for?
    passed = 0.0
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        middle = (passed + weights[i] / 2) / weights.sum()
        parts[min(int(middle * len(profile)), len(profile) - 1)].append(i)
        passed += weights[i]
    assert min(len(part) for part in parts) >= min_count - 1  # an image on a border may fall to either side by rounding
    assert np.all(np.diff(profile) >= -1e-9)
    assert values.min() - 1e-9 <= profile[0]
    assert profile[-1] <= values.max() + 1e-9
    if most == 1:
        assert np.mean(profile) == pytest.approx(values.mean(), abs=50 / len(profile))


def test_each_patient_counts_once_in_a_profile() -> None:
    weights = patient_weights(["ann", "ann", "ann", "ann", "bob", "cem"])
    assert weights.tolist() == [0.25, 0.25, 0.25, 0.25, 1, 1]
    values = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 2.0])
    assert loss_profile(values, 1, 1, weights) == pytest.approx((1.0,))
    assert loss_profile(values, 3, 1, weights) == pytest.approx((0.0, 1.0, 2.0))


def test_a_profile_of_whole_parts_is_their_means() -> None:
    assert loss_profile(np.array([4.0, 1.0, 3.0, 2.0]), 9, 2) == (1.5, 3.5)
    assert loss_profile(np.array([4.0, 1.0, 3.0, 2.0]), 9, 1) == (1.0, 2.0, 3.0, 4.0)
    assert loss_profile(np.array([4.0, 1.0]), 0, 1) == ()


def _logits(y_N: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(y_N, 3).float() * 5


def test_measure() -> None:
    y_N = torch.tensor([0] * 12 + [1] * 12 + [2] * 2)
    logits = _logits(y_N)
    logits[0] = _logits(torch.tensor([1]))[0]
    found = measure(logits, y_N, "held_out", 10, told_strata(10, y_N))
    assert found["held_out_images"] == 26
    assert found["held_out_accuracy"] == pytest.approx(25 / 26)
    assert found["held_out_accuracy_class_0"] == pytest.approx(11 / 12)
    assert found["held_out_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y_N)), rel=1e-5)
    assert found["held_out_images_class_0"] == 12
    assert not [key for key in found if key.endswith("class_2")]  # two images: too few
    assert not [key for key in found if key.endswith("class_1")]  # beside the whole and class 0 it would tell of class 2
    assert all(np.isfinite(list(found.values())))


def test_measure_says_nothing_of_a_small_set() -> None:
    y_N = torch.zeros(9).long()
    assert measure(_logits(y_N), y_N, "forget", 10, []) == {}
    assert measure(_logits(y_N), y_N, "forget", 9, [])


def test_measure_of_a_set_with_an_absent_class() -> None:
    y_N = torch.tensor([0] * 10 + [2] * 10)
    found = measure(_logits(y_N), y_N, "forget", 1, told_strata(1, y_N))
    assert "forget_accuracy_class_1" not in found


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 12))
def test_what_is_told_by_class_leaves_no_few_images_over(y: list[int], min_count: int) -> None:
    told, counts = told_strata(min_count, torch.tensor(y, dtype=torch.int64)), Counter(y)
    assert all(counts[c] >= min_count for c in told)
    rest = len(y) - sum(counts[c] for c in told)
    assert rest == 0 or rest >= min_count or not told
    if min(counts.values(), default=0) >= min_count:
        assert told == sorted(counts)


def test_labels_are_measured_one_by_one() -> None:
    y_NL = torch.zeros(30, 2)
    y_NL[:12, 0], y_NL[:4, 1] = 1, 1
    logits = 8 * y_NL - 4
    logits[0] = -logits[0]  # the first image is wrong on both labels
    found = measure(logits, y_NL, "forget", 10, told_strata(10, y_NL))
    assert found["forget_images"] == 30
    assert found["forget_accuracy"] == pytest.approx(58 / 60)
    assert found["forget_loss"] == pytest.approx(float(nn.functional.binary_cross_entropy_with_logits(logits, y_NL)))
    assert found["forget_accuracy_class_0"] == 1  # the 18 without the first label
    assert found["forget_accuracy_class_1"] == pytest.approx(11 / 12)  # the 12 with it
    assert told_strata(10, y_NL) == [0, 1]  # four images have the second label: neither side of it is told
    assert told_strata(4, y_NL) == [0, 1, 2, 3]
    sought = torch.zeros(30, 2, dtype=torch.bool)
    sought[:12, 0] = True
    sought[:4, 1] = True  # of too few images to be told of, beside those that are
    assert measure(logits, y_NL, "forget", 10, [], sought)["forget_accuracy"] == pytest.approx(11 / 12)
    assert measure(logits, y_NL, "forget", 10, [], sought)["forget_scored"] == 12
    assert measure(logits, y_NL, "forget", 13, [], sought) == {}


_label_sets = st.lists(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=40), min_size=1, max_size=3)


@given(_label_sets, st.integers(1, 12))
def test_what_is_told_of_several_sets_leaves_no_few_images_over_in_any(sets: list[list[tuple[int, int]]], few: int) -> None:
    ys = [torch.tensor(y, dtype=torch.float32).reshape(-1, 2) for y in sets]
    told = told_strata(few, *ys)
    for y in ys:
        for label in range(2):
            sizes = {2 * label + side: int((y[:, label] == side).sum()) for side in (0, 1)}
            assert all(sizes[s] == 0 or sizes[s] >= few for s in sizes if s in told)
            left = sum(n for s, n in sizes.items() if s not in told)
            assert left == 0 or left >= few or not any(s in told for s in sizes)


def test_predict_goes_in_batches_and_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model.train()
    x = torch.rand(MOST_IMAGES + 3, 1, 2, 2)
    before = model[2].running_mean.clone()
    logits = predict(model, x)
    assert model.training
    assert torch.equal(model[2].running_mean, before)
    assert logits.shape == (MOST_IMAGES + 3, 3)
    assert not logits.requires_grad
    model.eval()
    torch.testing.assert_close(logits, model(x).detach())


def test_volumes_go_through_in_smaller_batches() -> None:
    assert images_at_once(torch.zeros(1, 1, 32, 32)) == MOST_IMAGES
    assert 1 < images_at_once(torch.zeros(1, 1, 28, 28, 28)) < 64
    assert images_at_once(torch.zeros(1).expand(1, 1, 2048, 2048, 2048)) == 1
    assert images_at_once(torch.zeros(0, 1, 4, 4)) == 1


# --- how many independent images a set is worth ---------------------------------------------------------------------------


def test_images_of_strangers_are_worth_as_many_as_they_are() -> None:
    values = np.random.default_rng(0).lognormal(size=50)
    assert effective_images(values, [str(i) for i in range(50)], 10) == pytest.approx(50)


def test_copies_of_one_image_are_worth_one() -> None:
    values = np.random.default_rng(0).lognormal(size=40)
    worth = effective_images(np.repeat(values, 5), [str(i) for i in np.repeat(np.arange(40), 5)], 10)
    assert worth == pytest.approx(40, rel=0.03)


def test_the_variance_of_a_mean_rank_is_that_of_so_many_independent_ones() -> None:
    rng = np.random.default_rng(1)
    who = np.repeat(np.arange(60), 6)

    def drawn() -> np.ndarray:
        values: np.ndarray = 0.7 * rng.normal(size=60)[who] + math.sqrt(1 - 0.49) * rng.normal(size=len(who))
        return values

    worths = [effective_images(drawn(), [str(p) for p in who], 10) for _ in range(30)]
    # Of normal numbers, whose ranks are about their values: how the mean varies over many draws.
    variance = np.var([drawn().mean() for _ in range(4000)])
    assert np.mean(worths) == pytest.approx(1 / variance, rel=0.12)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 12)), max_size=80), st.integers(1, 15))
def test_it_is_told_of_enough_patients_and_never_more_than_there_are(images: list[tuple[float, int]], min_count: int) -> None:
    values, patients = np.array([value for value, _ in images]), [str(patient) for _, patient in images]
    worth = effective_images(values, patients, min_count)
    if len(set(patients)) < max(min_count, 2):
        assert math.isnan(worth)
    else:
        assert 1 <= worth <= len(images)


def test_that_a_patients_images_are_of_one_class_does_not_make_them_alike() -> None:
    rng = np.random.default_rng(4)
    who = np.repeat(np.arange(40), 5)
    classes = (who % 2).astype(np.int64)
    values, names = rng.lognormal(size=200) + 9 * classes, [str(patient) for patient in who]
    assert effective_images(values, names, 10) < 60
    assert effective_images(values, names, 10, classes) > 120
