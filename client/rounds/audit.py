"""How good are models on the forget, retain, reference and held-out images?"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from excise.client import audit
from excise.client.compute import device_of, to_device
from excise.client.preparation import forgotten_classes
from excise.client.rounds.losses import evenly_spread, losses_by_stratum
from excise.client.rounds.model import check_model, load_model
from excise.client.site import Site
from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import sought_labels
from excise.common.messages import AuditQuery, AuditReply, ModelAudit
from excise.common.profiles import ALL_CLASSES
from excise.common.weights import Weights

COUNT = re.compile(r"_(images|images_class_\d+|scored)$")
"""Metrics that are numbers of images, or of what was scored of them."""
JUDGED = ("forget", "held_out")
"""Sets of which the membership test says how sure it is."""
PROFILE_POINTS = 64
"""Most points of a loss profile: enough for the second decimal of an AUC."""


def answer(site: Site, query: AuditQuery) -> AuditReply:
    """Score models on the forget, retain, reference and held-out images."""
    check_model(site, query.model)
    sets = site.select(query.request)
    audited = {"forget": sets.forget, "retain": sets.retain, "reference": sets.reference, "held_out": sets.held_out}
    min_count = site.config.policy.min_count
    if query.brief:
        audited |= {
            "retain": evenly_spread(sets.retain, len(sets.reference), site.y_N, min_count),
            "held_out": sets.held_out[:0],
        }
    told = {name: audit.told_strata(min_count, site.y_N[index]) for name, index in audited.items()}
    parts, of_parts = _parts(site, sets.forget, query, min_count)
    audited |= parts
    told |= dict.fromkeys(parts, of_parts)
    audits = {name: _audit(site, query, weights, audited, told) for name, weights in query.candidates.items()}
    return AuditReply(
        metrics={f"{name}/{key}": value for name, told in audits.items() for key, value in told.metrics.items()},
        profiles={f"{name}/{key}": profile for name, told in audits.items() for key, profile in told.profiles.items()},
        passes=site.config.policy.told(len(audits) * sum(len(index) for index in audited.values())),
    )


def _parts(site: Site, forget: Tensor, query: AuditQuery, min_count: int) -> tuple[dict[str, Tensor], list[int]]:
    """Forget images of each part, and strata that may be told of them; none when a combination of parts has few images.

    Sums and differences of what is told of the parts and of the whole then still stand for `min_count` images.
    """
    of_part = [torch.isin(forget, site.select(part).forget) for part in query.parts]
    if not of_part or len(forget) == 0:
        return {}, []
    _, combination_N, counts = torch.stack(of_part, dim=1).unique(dim=0, return_inverse=True, return_counts=True)
    if int(counts.min()) < min_count:
        return {}, []
    told = audit.told_strata(min_count, *(site.y_N[forget[combination_N == c]] for c in range(len(counts))))
    return {f"part{i}": forget[member] for i, member in enumerate(of_part)}, told


def _audit(
    site: Site, query: AuditQuery, weights: Weights, sets: Mapping[str, Tensor], told: Mapping[str, Sequence[int]]
) -> ModelAudit:
    """Score one model on `sets`, with the strata in `told` of each."""
    min_count = site.config.policy.min_count
    model, device = load_model(site, query.model, weights), device_of(site.config)
    metrics: dict[str, float] = {}
    profiles: dict[str, tuple[float, ...]] = {}
    for name, index in sets.items():
        if len(index) < min_count:
            continue
        logits_NC, y_N = predict(model, to_device(site.x[index], device)).cpu(), site.y_N[index]
        measured = audit.measure(logits_NC, y_N, name, min_count, told[name], _sought(site, name, y_N, query))
        metrics |= measured
        if measured and name != "retain":
            losses = losses_by_stratum(logits_NC, y_N, told[name])
            if name in JUDGED and not query.brief:
                metrics |= _effective(site, name, index, y_N, losses[ALL_CLASSES][1])
            for key, (_, losses_N) in losses.items():
                profile = audit.loss_profile(losses_N, PROFILE_POINTS, min_count)
                if key != ALL_CLASSES and profile and all(map(math.isfinite, profile)):
                    profiles[f"{name}/{key}"] = profile
    told_of = site.config.policy.told
    numbers = {key: float(told_of(int(value))) if COUNT.search(key) else value for key, value in metrics.items()}
    return ModelAudit({key: value for key, value in numbers.items() if math.isfinite(value)}, profiles)


def _effective(site: Site, name: str, index: Tensor, y_N: Tensor, losses_N: NDArray[np.float64]) -> dict[str, float]:
    """How many independent images a set is worth, rounded down as its number of images is rounded up: never too many."""
    policy, class_N = site.config.policy, y_N.numpy() if y_N.ndim == 1 else None
    patients = [site.scan.rows[i].patient for i in index.tolist()]
    worth = audit.effective_images(losses_N, patients, policy.min_count, class_N)
    told = policy.told_at_least(round(worth, 6))  # 12 images of 12 patients are not worth 11.999…
    return {f"{name}_effective": told} if told else {}


def _sought(site: Site, name: str, y: Tensor, query: AuditQuery) -> Tensor | None:
    """Of several labels those that scores of a set of forget images are of: what else these images have is to be kept."""
    requests = {"forget": query.request} | {f"part{i}": part for i, part in enumerate(query.parts)}
    if y.ndim == 1 or name not in requests:
        return None
    return sought_labels(y, forgotten_classes(site, y, requests[name]))
