"""Scores pooled from the sites' aggregates against the scores of the images themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor

from excise.client.audit import loss_profile, measure, told_strata
from excise.common.class_mix import ClassMix
from excise.common.messages import ModelAudit
from excise.common.metrics import accuracy, membership_auc
from excise.server.scores import SETS, Audit, loss_points, membership, on_reference, pooled_scores, told_mix

CLASSES = 3
Images = dict[str, tuple[Tensor, Tensor]]  # set → logits, labels


def images_of(site: int, sizes: dict[str, int], classes: int = CLASSES) -> Images:
    generator = Generator().manual_seed(site)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(classes, (n,), generator=generator)
        return torch.randn(n, classes, generator=generator) + torch.nn.functional.one_hot(y, classes), y

    return {name: draw(n) for name, n in sizes.items()}


def losses(logits: Tensor, y: Tensor) -> np.ndarray:
    return torch.nn.functional.cross_entropy(logits, y, reduction="none").double().numpy()


def class_accuracies(logits: Tensor, y: Tensor) -> list[float]:
    return [accuracy(logits[y == c], y[y == c]) for c in range(CLASSES)]


def audit(images: Images, points: int = 10_000, min_count: int = 1, classes: int = CLASSES) -> ModelAudit:
    """What a site tells of its images; with these defaults every image's loss."""
    metrics: dict[str, float] = {}
    profiles: dict[str, tuple[float, ...]] = {}
    for name, (logits, y) in images.items():
        metrics |= measure(logits, y, name, min_count, told_strata(min_count, y))
        for c in range(classes) if name != "retain" else ():
            if profile := loss_profile(losses(logits, y)[(y == c).numpy()], points, min_count):
                profiles[f"{name}/{c}"] = profile
    return ModelAudit(metrics=metrics, profiles=profiles)


def union(sites: list[Images], name: str) -> tuple[Tensor, Tensor]:
    return torch.cat([s[name][0] for s in sites if name in s]), torch.cat([s[name][1] for s in sites if name in s])


SITES = [
    images_of(1, {"forget": 40, "retain": 200, "held_out": 90}),
    images_of(2, {"retain": 30, "held_out": 300}),
    images_of(3, {"forget": 150, "retain": 10, "held_out": 25}),
]
AUDITS = {f"site-{i}": audit(site) for i, site in enumerate(SITES)}


@pytest.mark.parametrize("name", SETS)
def test_pooled_scores_are_those_of_the_union(name: str) -> None:
    scores, (logits, y) = pooled_scores(AUDITS, CLASSES), union(SITES, name)
    assert scores[f"{name}_images"] == len(y)
    assert scores[f"{name}_accuracy"] == pytest.approx(accuracy(logits, y), abs=1e-6)
    assert scores[f"{name}_loss"] == pytest.approx(losses(logits, y).mean(), rel=1e-5)
    per_class = class_accuracies(logits, y)
    assert [scores[f"{name}_accuracy_class_{c}"] for c in range(CLASSES)] == pytest.approx(per_class, abs=1e-6)
    assert scores[f"{name}_balanced_accuracy"] == pytest.approx(np.mean(per_class), abs=1e-6)


def test_the_worst_site_is_the_lowest() -> None:
    own = [accuracy(*site["held_out"]) for site in SITES]
    assert pooled_scores(AUDITS, CLASSES)["worst_site_held_out_accuracy"] == pytest.approx(min(own))


def test_membership_of_one_class_is_that_of_the_raw_losses() -> None:
    generator = Generator().manual_seed(5)
    sites = []
    for n in (60, 200):
        forget = torch.randn(n, 2, generator=generator) + torch.tensor([1.0, 0])
        held_out = torch.randn(2 * n, 2, generator=generator)
        sites.append(
            {
                "forget": (forget, torch.zeros(n, dtype=torch.int64)),
                "held_out": (held_out, torch.zeros(2 * n, dtype=torch.int64)),
            }
        )
    raw = membership_auc(*(losses(*union(sites, name)).astype(np.float32) for name in ("forget", "held_out")))
    assert raw > 0.6
    fine = {str(i): audit(site, classes=2) for i, site in enumerate(sites)}
    assert membership(fine, 2) == pytest.approx(raw, abs=1e-6)
    coarse = {str(i): audit(site, points=64, min_count=5, classes=2) for i, site in enumerate(sites)}
    assert membership(coarse, 2) == pytest.approx(raw, abs=0.01)


def test_membership_weighs_held_out_classes_like_forget_classes() -> None:
    logits_f, y_f = union(SITES, "forget")
    logits_h, y_h = union(SITES, "held_out")
    weight = torch.bincount(y_f, minlength=CLASSES) / torch.bincount(y_h, minlength=CLASSES)
    expected = roc_auc_score(
        np.r_[np.ones(len(y_f)), np.zeros(len(y_h))],
        -np.r_[losses(logits_f, y_f), losses(logits_h, y_h)],
        sample_weight=np.r_[np.ones(len(y_f)), weight[y_h].numpy()],
    )
    assert membership(AUDITS, CLASSES) == pytest.approx(expected, abs=1e-6)


def test_results_hold_the_membership_auc_of_each_site_that_has_both_sets() -> None:
    sites = Audit.of(AUDITS, CLASSES).as_json()["sites"]
    for name in ("site-0", "site-2"):
        assert sites[name].pop("membership_auc") == membership({name: AUDITS[name]}, CLASSES)
    assert sites == {name: audit.metrics for name, audit in AUDITS.items()}


def test_another_mix_of_classes_is_no_membership() -> None:
    generator = Generator().manual_seed(0)

    def draw(easy: int, hard: int) -> tuple[Tensor, Tensor]:
        y = torch.tensor([0] * easy + [1] * hard)
        margin = torch.where(y == 0, 3.0, -1.0) + 0.5 * torch.randn(len(y), generator=generator)
        return torch.stack([torch.where(y == 0, margin, -margin), torch.zeros(len(y))], 1), y

    site = {"forget": draw(900, 100), "held_out": draw(100, 900)}
    unmatched = membership_auc(*(losses(*site[name]).astype(np.float32) for name in ("forget", "held_out")))
    assert unmatched > 0.85
    assert membership({"a": audit(site, classes=2)}, 2) == pytest.approx(0.5, abs=0.05)


def test_a_class_on_one_side_only_is_left_out() -> None:
    profiles = {"forget/0": (1.0, 2.0), "held_out/0": (1.0, 2.0), "forget/1": (0.0,)}
    counts = {"forget_images_class_0": 2.0, "held_out_images_class_0": 2.0, "forget_images_class_1": 50.0}
    assert membership({"a": ModelAudit(metrics=counts, profiles=profiles)}, 2) == 0.5


@pytest.mark.parametrize(
    "missing", [{}, {"a": ModelAudit(metrics={}, profiles={})}], ids=["no site", "a site that tells none"]
)
def test_without_numbers_every_score_is_nan(missing: dict[str, ModelAudit]) -> None:
    scores = pooled_scores(missing, CLASSES)
    assert all(value == 0 if key.endswith("_images") else math.isnan(value) for key, value in scores.items())


def test_a_missing_set_is_nan_and_the_others_are_not() -> None:
    scores = pooled_scores({"b": AUDITS["site-1"]}, CLASSES)  # that site has no forget images
    assert math.isnan(scores["forget_accuracy"])
    assert math.isnan(scores["membership_auc"])
    assert scores["forget_images"] == 0
    assert scores["held_out_accuracy"] == pytest.approx(accuracy(*SITES[1]["held_out"]))


def test_loss_points_carry_every_image_once() -> None:
    values, mass = loss_points({k: audit(s, points=7, min_count=3) for k, s in zip("abc", SITES, strict=True)}, "held_out", 3)
    _, y = union(SITES, "held_out")
    assert sum(mass) == pytest.approx(len(y))
    assert len(values) == len(mass)


def test_choices_see_reference_images_in_the_place_of_held_out_ones() -> None:
    site = images_of(5, {"forget": 60, "retain": 50, "held_out": 80, "reference": 70})
    as_if = {"forget": site["forget"], "retain": site["retain"], "held_out": site["reference"]}
    expected = audit(as_if)
    assert pooled_scores({"a": on_reference(audit(site))}, CLASSES) == pooled_scores({"a": expected}, CLASSES)
    choice = Audit.of({"a": audit(site)}, CLASSES).choice()
    assert choice == {"pooled": pooled_scores({"a": expected}, CLASSES), "sites": {"a": expected.metrics}}


def test_without_reference_images_nothing_of_the_held_out_ones_is_left() -> None:
    scores = pooled_scores({"a": on_reference(AUDITS["site-0"])}, CLASSES)
    assert scores["held_out_images"] == 0
    assert math.isnan(scores["held_out_accuracy"])
    assert math.isnan(scores["membership_auc"])


def test_matched_accuracy_is_that_of_held_out_images_in_the_forget_sets_mix_of_classes() -> None:
    scores = pooled_scores(AUDITS, CLASSES)
    (_, forget_y), (logits, y) = union(SITES, "forget"), union(SITES, "held_out")
    per_class, counts = class_accuracies(logits, y), torch.bincount(forget_y, minlength=CLASSES)
    expected = sum(float(n) * a for n, a in zip(counts, per_class, strict=True)) / len(forget_y)
    assert scores["matched_held_out_accuracy"] == pytest.approx(expected, abs=1e-6)
    assert scores["matched_forget_accuracy"] == pytest.approx(scores["forget_accuracy"], abs=1e-6)


def test_a_class_that_one_side_does_not_tell_is_matched_on_neither() -> None:
    site = images_of(6, {"forget": 90, "held_out": 80})
    logits, y = site["held_out"]
    site["held_out"] = (logits[y != 1], y[y != 1])
    scores = pooled_scores({"a": audit(site)}, CLASSES)
    counts = {c: int((site["forget"][1] == c).sum()) for c in range(CLASSES) if c != 1}
    for name in ("forget", "held_out"):
        told = class_accuracies(*site[name])
        expected = sum(n * told[c] for c, n in counts.items()) / sum(counts.values())
        assert scores[f"matched_{name}_accuracy"] == pytest.approx(expected, abs=1e-6)


def mix_told(*sites: Images, min_count: int = 1) -> ClassMix:
    told = {str(i): audit(site, min_count=min_count).metrics for i, site in enumerate(sites)}
    return told_mix(told, CLASSES, multi_label=False)


def test_the_mix_of_classes_is_that_of_the_union() -> None:
    mix = mix_told(*SITES)
    for name, counted in (("forget", mix.forget), ("retain", mix.retain)):
        _, y = union(SITES, name)
        assert counted == {c: float((y == c).sum()) for c in range(CLASSES)}


def of_classes(*counts: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.nn.functional.one_hot(y, CLASSES).float(), y


@pytest.mark.parametrize(
    ("forget", "retain"),
    [
        ((100, 30, 0), (2000, 3, 0)),  # no retain count is told
        ((50, 20, 0), (300, 3, 400)),  # only that of class 2
        ((50, 4, 30), (300, 300, 300)),  # only the forget count of class 0
    ],
)
def test_what_is_not_told_is_not_none(forget: tuple[int, ...], retain: tuple[int, ...]) -> None:
    rare = {"forget": of_classes(*forget), "retain": of_classes(*retain)}
    alone = mix_told(rare, min_count=5)
    assert [alone.log_odds_shift(c) for c in range(CLASSES)] == [0.0] * CLASSES
    assert alone.distance() == 0
    whole = {"forget": of_classes(40, 10, 10), "retain": of_classes(100, 100, 100)}
    assert mix_told(rare, whole, min_count=5) == mix_told(whole, min_count=5)


def test_a_label_that_is_not_told_is_left_out_alone() -> None:
    told = {"forget_images": 10.0, "forget_images_class_2": 4.0, "forget_images_class_3": 6.0}
    told |= {"retain_images": 30.0} | {f"retain_images_class_{s}": n for s, n in ((0, 20.0), (1, 10.0), (2, 15.0), (3, 15.0))}
    assert told_mix({"site": told}, 4, multi_label=True) == ClassMix({2: 4.0, 3: 6.0}, {2: 15.0, 3: 15.0}, multi_label=True)
