"""One set of scores for the federation out of the sites' audits, which hold aggregates only.

Images that were never trained on come in two sets. Which round is kept and which candidate is chosen is decided on the
*reference* images. The *held-out* images judge what was chosen; chosen on the same images, the best of ten rounds would look
better than it is. (Both calibrate the targets: one number per quantile, over all patients.)

Where an image has several labels, the "classes" here are the two sides of each label (`ModelSpec.strata`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import numpy as np

from excise.common.class_mix import ClassMix
from excise.common.messages import ModelAudit

SETS = ("forget", "retain", "held_out")
T = TypeVar("T")


@dataclass(frozen=True)
class Audit:
    """Scores of one model, pooled and by site.

    `choice()` gives both with reference images in the place of held-out ones; choices are made on it.
    """

    pooled: dict[str, float]
    sites: dict[str, dict[str, float]]
    parts: tuple[dict[str, float], ...] = ()
    """Pooled scores in which the forget set is that of one of the requests that were joined."""
    told: Mapping[str, ModelAudit] = field(default_factory=dict)
    """What each site said, which intervals are drawn from."""
    classes: int = 0

    @classmethod
    def of(cls, audits: Mapping[str, ModelAudit], classes: int, parts: int = 0) -> Self:
        """Pool what each site said of the model."""
        return cls(
            pooled=pooled_scores(audits, classes),
            sites=_by_site(audits),
            parts=tuple(
                pooled_scores({site: on_part(audit, i) for site, audit in audits.items()}, classes) for i in range(parts)
            ),
            told=dict(audits),
            classes=classes,
        )

    def choice(self) -> dict[str, Any]:
        """``pooled`` and ``sites`` on reference images; made when asked for: of a thousand sites they are many numbers."""
        choosing = {site: on_reference(audit) for site, audit in self.told.items()}
        return {"pooled": pooled_scores(choosing, self.classes), "sites": _by_site(choosing)}

    def as_json(self) -> dict[str, Any]:
        """What goes into the results: everything but what choices were made on; and the membership AUC of each site alone.

        ``losses`` are the points of a histogram of forget and of held-out images. Made when asked for, as `choice()` is.
        """
        own = {site: membership({site: audit}, self.classes) for site, audit in self.told.items()}
        sites = {
            site: metrics | ({} if math.isnan(own.get(site, math.nan)) else {"membership_auc": own[site]})
            for site, metrics in self.sites.items()
        }
        losses = {side: list(loss_points(self.told, side, self.classes)) for side in ("forget", "held_out")}
        return {"pooled": self.pooled, "sites": sites, "losses": losses}


def _by_site(audits: Mapping[str, ModelAudit]) -> dict[str, dict[str, float]]:
    return {site: audit.metrics for site, audit in audits.items()}


def pooled_scores(audits: Mapping[str, ModelAudit], classes: int) -> dict[str, float]:
    """Scores over the images of all sites.

    Returns
    -------
    ``<set>_images``, ``<set>_accuracy``, ``<set>_loss``, ``<set>_ece``, ``<set>_accuracy_class_<c>`` for the sets forget,
    retain and held_out; ``membership_auc`` (`membership`); ``worst_site_held_out_accuracy``; ``matched_held_out_accuracy`` and
    ``matched_forget_accuracy``, on the forget set's mix of those classes that both sets told. NaN where no site told a number.
    """
    scores: dict[str, float] = {}
    for name in SETS:
        scores[f"{name}_images"] = sum(audit.metrics.get(f"{name}_images", 0.0) for audit in audits.values())
        for metric, of in (("accuracy", "scored"), ("loss", "scored"), ("ece", "images")):
            scores[f"{name}_{metric}"] = _weighted(audits, f"{name}_{metric}", f"{name}_{of}")
        per_class = [_weighted(audits, f"{name}_accuracy_class_{c}", f"{name}_images_class_{c}") for c in range(classes)]
        scores |= {f"{name}_accuracy_class_{c}": value for c, value in enumerate(per_class)}
        told = [value for value in per_class if not math.isnan(value)]
        scores[f"{name}_balanced_accuracy"] = sum(told) / len(told) if told else math.nan
    for name in ("forget", "held_out"):
        scores[f"matched_{name}_accuracy"] = _matched(audits, scores, classes, name)
    scores["membership_auc"] = membership(audits, classes)
    held_out = [a.metrics["held_out_accuracy"] for a in audits.values() if "held_out_accuracy" in a.metrics]
    scores["worst_site_held_out_accuracy"] = min(held_out, default=math.nan)
    return scores


def told_mix(sites: Mapping[str, Mapping[str, float]], strata: int, multi_label: bool) -> ClassMix:
    """Forget and retain images of each stratum over all sites, as far as their audits tell.

    A site that leaves a class untold in one of the two sets is left out, of labels where it concerns that label: what it does
    not tell is not none.

    Parameters
    ----------
    sites : metrics of the audit of any model, by site
    strata : how many there are (`ModelSpec.strata`)
    """
    groups = [(2 * label, 2 * label + 1) for label in range(strata // 2)] if multi_label else [tuple(range(strata))]
    pooled: dict[str, dict[int, float]] = {"forget": {}, "retain": {}}
    for metrics in sites.values():
        for group in groups:
            counts = {name: {s: metrics.get(f"{name}_images_class_{s}", 0.0) for s in group} for name in pooled}
            if all(sum(of.values()) == metrics.get(f"{name}_images", 0.0) for name, of in counts.items()):
                for name, of in counts.items():
                    pooled[name] |= {s: pooled[name].get(s, 0.0) + n for s, n in of.items() if n}
    return ClassMix(pooled["forget"], pooled["retain"], multi_label)


def on_reference(audit: ModelAudit) -> ModelAudit:
    """The same audit with the reference images in the place of the held-out ones: what choices are made on."""
    return _with(audit, "held_out", "reference")


def on_part(audit: ModelAudit, number: int) -> ModelAudit:
    """The same audit with the forget images of one of the joined requests in the place of all of them."""
    return _with(audit, "forget", f"part{number}")


def _with(audit: ModelAudit, replaced: str, by: str) -> ModelAudit:
    def swapped(told: Mapping[str, T]) -> dict[str, T]:
        gone, taken = (f"{replaced}_", f"{replaced}/"), (f"{by}_", f"{by}/")
        kept = {key: value for key, value in told.items() if not key.startswith((*gone, *taken))}
        return kept | {replaced + key.removeprefix(by): value for key, value in told.items() if key.startswith(taken)}

    return ModelAudit(swapped(audit.metrics), swapped(audit.profiles))


def _matched(audits: Mapping[str, ModelAudit], scores: Mapping[str, float], classes: int, name: str) -> float:
    """Accuracy of a set on the forget set's mix of classes, over the classes that both sets told."""
    told = []
    for c in range(classes):
        images = sum(a.metrics.get(f"forget_images_class_{c}", 0.0) for a in audits.values())
        if images and not math.isnan(scores[f"held_out_accuracy_class_{c}"]):
            told.append((images, scores[f"{name}_accuracy_class_{c}"]))
    return sum(n * accuracy for n, accuracy in told) / sum(n for n, _ in told) if told else math.nan


def _weighted(audits: Mapping[str, ModelAudit], metric: str, images: str) -> float:
    told = [(a.metrics[metric], a.metrics[images]) for a in audits.values() if metric in a.metrics and images in a.metrics]
    total = sum(n for _, n in told)
    return sum(value * n for value, n in told) / total if total else math.nan


def membership(audits: Mapping[str, ModelAudit], classes: int) -> float:
    """Loss-threshold membership AUC, forget against held-out images of the same classes, over all sites; NaN without both.

    The held-out images of each class weigh as much as the forget images of that class do: another mix of classes would
    pass for membership. Each point of a loss profile stands for its equal share of the images it was made of.
    """
    points: list[float] = []
    mass: list[float] = []
    truth: list[int] = []
    for c in range(classes):
        sides = [_class_points(audits, side, c) for side in ("forget", "held_out")]
        if not all(weights.sum() > 0 for _, weights in sides):
            continue
        total = sides[0][1].sum()
        for member, (values, weights) in zip((1, 0), sides, strict=True):
            points += values.tolist()
            mass += (weights / weights.sum() * total).tolist()
            truth += [member] * len(values)
    if not truth:
        return math.nan
    from sklearn.metrics import roc_auc_score  # seconds to import: not before a number is needed

    return float(roc_auc_score(truth, -np.array(points), sample_weight=np.array(mass)))


def _class_points(audits: Mapping[str, ModelAudit], side: str, c: int) -> tuple[np.ndarray, np.ndarray]:
    values, weights = [], []
    for audit in audits.values():
        profile = audit.profiles.get(f"{side}/{c}", ())
        values += list(profile)
        weights += [audit.metrics.get(f"{side}_images_class_{c}", 0.0) / len(profile)] * len(profile) if profile else []
    return np.array(values), np.array(weights)


def loss_points(audits: Mapping[str, ModelAudit], side: str, classes: int) -> tuple[list[float], list[float]]:
    """Losses and their number of images over all sites and classes, for a histogram."""
    parts = [_class_points(audits, side, c) for c in range(classes)]
    return [float(v) for values, _ in parts for v in values], [float(m) for _, mass in parts for m in mass]
