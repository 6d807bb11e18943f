"""How uncertain is the deployed model on images it never saw?"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from excise.client import audit
from excise.client.compute import device_of, to_device
from excise.client.rounds.losses import evenly_spread, losses_by_stratum
from excise.client.rounds.model import check_model, load_model, teacher_path
from excise.client.site import Site
from excise.client.unlearning.inference import predict
from excise.common.messages import ReferenceQuery, ReferenceReply
from excise.common.weights import digest, save_weights


def answer(site: Site, query: ReferenceQuery) -> ReferenceReply:
    """Keep the teacher, and tell its losses on the images that were never trained on, each class for itself where it can."""
    check_model(site, query.model)
    save_weights(query.teacher, teacher_path(site, digest(query.teacher)))
    sets, min_count = site.select(query.request), site.config.policy.min_count
    # All that was never trained on: a small reference misleads. Audits tell of the two sets apart, so neither may be small.
    asked = {"unseen": [sets.reference, sets.held_out]}
    if query.trained:
        asked["trained"] = [evenly_spread(sets.retain, len(sets.reference) + len(sets.held_out), site.y_N, min_count)]
    teacher = load_model(site, query.model, query.teacher)
    profiles: dict[str, tuple[float, ...]] = {}
    patients: dict[str, float] = {}
    passes = 0
    for name, parts in asked.items():
        found: dict[str, list[tuple[Tensor, NDArray[np.float64]]]] = defaultdict(list)
        for rows in parts:
            if len(rows) < min_count:
                continue
            logits, y = predict(teacher, to_device(site.x[rows], device_of(site.config))).cpu(), site.y_N[rows]
            passes += len(rows)
            for key, (places, losses_N) in losses_by_stratum(logits, y, audit.told_strata(min_count, y)).items():
                found[key].append((rows[places], losses_N))
        for key, told in found.items():
            of = [site.scan.rows[i].patient for rows, _ in told for i in rows.tolist()]
            losses_N = np.concatenate([losses_N for _, losses_N in told])
            profile = audit.loss_profile(losses_N, query.points, min_count, audit.patient_weights(of))
            if profile:
                profiles[f"{name}/{key}"], patients[f"{name}/{key}"] = profile, len(set(of))
    rounded = site.config.policy.told
    return ReferenceReply(
        profiles=profiles, patients={key: float(rounded(int(n))) for key, n in patients.items()}, passes=rounded(passes)
    )
