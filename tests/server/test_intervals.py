"""Intervals from what sites tell of many images, against a slow bootstrap of the losses themselves, and against the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from excise.client.audit import effective_images, loss_profile
from excise.common.messages import ModelAudit
from excise.server.intervals import UNKNOWN, Interval, accuracy_interval, membership_interval
from excise.server.scores import membership

CLASSES = 2
Side = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]  # losses, classes and patients of its images
Losses = dict[str, Side]


def side(rng: np.random.Generator, patients: int, images: int, alike: float, shift: float = 0.0) -> Side:
    """Losses of `patients` with up to 2·`images` − 1 images; `alike` is the part of the variance that patients share."""
    who = np.repeat(np.arange(patients), rng.integers(1, 2 * images, patients))
    drawn = math.sqrt(alike) * rng.normal(size=patients)[who] + math.sqrt(1 - alike) * rng.normal(size=len(who))
    classes = rng.integers(CLASSES, size=patients)[who]
    return np.exp(drawn + shift + 0.7 * classes), classes, who


def site(rng: np.random.Generator, forget: int, held_out: int, images: int, alike: float, shift: float) -> Losses:
    return {"forget": side(rng, forget, images, alike, shift), "held_out": side(rng, held_out, images, alike)}


def told(losses: Losses, min_count: int = 10) -> ModelAudit:
    """What a site says of its losses."""
    metrics: dict[str, float] = {}
    profiles: dict[str, tuple[float, ...]] = {}
    for name, (values, classes, patients) in losses.items():
        metrics[f"{name}_images"] = float(len(values))
        worth = effective_images(values, [str(patient) for patient in patients], min_count, classes)
        if not math.isnan(worth):
            metrics[f"{name}_effective"] = worth
        for c in range(CLASSES):
            if profile := loss_profile(values[classes == c], 64, min_count):
                metrics[f"{name}_images_class_{c}"] = float((classes == c).sum())
                profiles[f"{name}/{c}"] = profile
    return ModelAudit(metrics, profiles)


def audits(sites: list[Losses], min_count: int = 10) -> dict[str, ModelAudit]:
    return {f"site-{i}": told(losses, min_count) for i, losses in enumerate(sites)}


def raw_auc(sites: list[Losses]) -> float:
    """The membership AUC of the losses themselves: how often a forget image's is below that of a held-out one of its class."""
    (f, f_class), (h, h_class) = (
        [np.concatenate([s[name][k] for s in sites]) for k in (0, 1)] for name in ("forget", "held_out")
    )
    n_f, n_h = (np.bincount(of, minlength=CLASSES) for of in (f_class, h_class))
    f_weights, h_weights = (n_h > 0)[f_class] + 1e-12, (n_f / np.maximum(n_h, 1))[h_class] + 1e-12
    order = np.argsort(h)
    below = np.r_[0, np.cumsum(h_weights[order])]
    above = below[-1] - below[np.searchsorted(h[order], f)]
    return float(f_weights @ above / (f_weights.sum() * below[-1]))


def raw_interval(sites: list[Losses], resamples: int, rng: np.random.Generator) -> Interval:
    """The slow, obvious one: patients are drawn anew at each site, with all their images."""

    def anew(of: Side) -> Side:
        losses, classes, who = of
        of_each = np.split(np.arange(len(who)), np.flatnonzero(np.diff(who)) + 1)
        rows = np.concatenate([of_each[patient] for patient in rng.choice(len(of_each), len(of_each))])
        return losses[rows], classes[rows], who[rows]

    aucs = [raw_auc([{name: anew(of) for name, of in s.items()} for s in sites]) for _ in range(resamples)]
    low, high = np.quantile(aucs, (0.025, 0.975))
    return float(low), float(high)


SETTINGS = {  # sites; patients of the forget and of the held-out set of each, their images, how alike, the shift of losses
    "images of strangers": (3, 60, 90, 1, 0.0, 0.0),
    "patients": (3, 25, 40, 4, 0.5, 0.0),
    "members": (3, 25, 40, 4, 0.5, -0.7),
    "one site": (1, 60, 60, 4, 0.3, -0.3),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_interval_is_about_that_of_the_losses_themselves(setting: tuple[int, int, int, int, float, float]) -> None:
    count, *of_site = setting
    rng = np.random.default_rng(5)
    apart = []
    for draw in range(4):
        sites = [site(rng, *of_site) for _ in range(count)]  # type: ignore[arg-type]
        raw = raw_interval(sites, 120, rng)
        ours = membership_interval(audits(sites), CLASSES, 1000, draw)
        apart.append([ours[0] - raw[0], ours[1] - raw[1]])
        assert np.abs(apart[-1]).max() < 0.08
    assert np.abs(np.mean(apart, axis=0)).max() < 0.03


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_interval_covers_the_truth_as_often_as_it_says(setting: tuple[int, int, int, int, float, float]) -> None:
    count, *of_site, shift = setting
    forget, held_out, images, alike = of_site
    truth = raw_auc([site(np.random.default_rng(99), 40_000, 40_000, 1, 0.0, shift)])
    rng, draws, covered = np.random.default_rng(7), 80, 0
    for draw in range(draws):
        sites = [site(rng, int(forget), int(held_out), int(images), alike, shift) for _ in range(count)]
        low, high = membership_interval(audits(sites), CLASSES, 200, draw)
        covered += low <= truth <= high
    assert covered / draws >= 0.88  # 95 %, less three standard errors


def test_as_if_images_were_strangers_it_would_be_too_narrow() -> None:
    rng = np.random.default_rng(3)
    sites = [site(rng, 25, 40, 6, 0.8, 0.0) for _ in range(3)]
    honest = audits(sites)
    sizes = {
        name: {f"{side}_effective": audit.metrics[f"{side}_images"] for side in sites[0]} for name, audit in honest.items()
    }
    naive = {name: replace(audit, metrics=audit.metrics | sizes[name]) for name, audit in honest.items()}
    (low, high), (a, b) = (membership_interval(of, CLASSES, 1000, 0) for of in (honest, naive))
    assert high - low > 1.5 * (b - a)


def test_the_same_seed_gives_the_same_interval_whoever_answers_first() -> None:
    rng = np.random.default_rng(1)
    of = audits([site(rng, 30, 40, 2, 0.3, 0.0) for _ in range(3)])
    again = dict(reversed(of.items()))
    assert membership_interval(of, CLASSES, 300, 4) == membership_interval(again, CLASSES, 300, 4)
    assert membership_interval(of, CLASSES, 300, 4) != membership_interval(of, CLASSES, 300, 5)


def test_in_parts_it_is_an_interval_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    of = audits([site(np.random.default_rng(1), 60, 60, 2, 0.3, 0.0)])
    whole = membership_interval(of, CLASSES, 1000, 4)
    monkeypatch.setattr("excise.server.intervals.AT_ONCE", 1)
    assert membership_interval(of, CLASSES, 1000, 4) == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize("name", ["forget", "held_out"])
def test_what_nobody_tells_is_not_measured(name: str) -> None:
    (audit,) = audits([site(np.random.default_rng(1), 60, 60, 2, 0.3, 0.0)]).values()
    assert membership_interval({"a": audit}, CLASSES, 100, 0) != UNKNOWN
    untold = [
        replace(audit, metrics={k: v for k, v in audit.metrics.items() if k != f"{name}_effective"}),
        replace(audit, profiles={k: v for k, v in audit.profiles.items() if not k.startswith(name)}),
        ModelAudit(),
    ]
    for one in untold:
        assert all(map(math.isnan, membership_interval({"a": one}, CLASSES, 100, 0)))
    assert all(map(math.isnan, membership_interval({}, CLASSES, 100, 0)))


def test_a_site_that_does_not_tell_what_its_images_are_worth_makes_it_wider() -> None:
    rng = np.random.default_rng(2)
    of = audits([site(rng, 60, 60, 2, 0.3, 0.0) for _ in range(3)])
    silent = replace(of["site-1"], metrics={k: v for k, v in of["site-1"].metrics.items() if "_effective" not in k})
    (low, high), (a, b) = (membership_interval(audited, CLASSES, 500, 0) for audited in (of, of | {"site-1": silent}))
    assert 1.0 >= b - a > high - low


def test_classes_on_different_sides_have_no_interval() -> None:
    (audit,) = audits([site(np.random.default_rng(1), 60, 60, 2, 0.3, 0.0)]).values()
    kept = {k: v for k, v in audit.profiles.items() if k in ("forget/0", "held_out/1")}
    assert all(map(math.isnan, membership_interval({"a": replace(audit, profiles=kept)}, CLASSES, 100, 0)))


_profile = st.lists(st.floats(0, 30), min_size=1, max_size=5).map(lambda values: tuple(sorted(values)))


@given(_profile, _profile, st.floats(0, 60), st.integers(0, 9))
@settings(max_examples=25)
def test_it_holds_the_auc_and_stays_between_0_and_1(
    forget: tuple[float, ...], held_out: tuple[float, ...], worth: float, seed: int
) -> None:
    counts = {"forget_images": 60.0, "held_out_images": 60.0, "forget_images_class_0": 60.0, "held_out_images_class_0": 60.0}
    metrics = counts | {"forget_effective": worth, "held_out_effective": worth}
    of = {"a": ModelAudit(metrics, {"forget/0": forget, "held_out/0": held_out})}
    low, high = membership_interval(of, 1, 100, seed)
    assert 0 <= low <= membership(of, 1) <= high <= 1 + 1e-12


@pytest.mark.parametrize(
    ("share", "images", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (1.0, 20, 0.8389, 1.0), (0.0, 20, 0.0, 0.1611)],  # R: prop.test(..., correct = FALSE)
)
def test_wilsons_interval(share: float, images: float, low: float, high: float) -> None:
    assert accuracy_interval(share, images) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("images", [7.0, 20.0, 33.3, 1000.0])
def test_the_interval_holds_the_share(share: float, images: float) -> None:
    low, high = accuracy_interval(share, images)
    assert low <= share <= high


@pytest.mark.parametrize(("share", "images"), [(math.nan, 20.0), (0.5, 0.0), (0.5, math.nan)])
def test_a_share_of_nothing_has_no_interval(share: float, images: float) -> None:
    assert all(map(math.isnan, accuracy_interval(share, images)))
