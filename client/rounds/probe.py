"""Do the features of models still tell the forget images, or the class that was forgotten, from others?

*Classes*: forget images against retain images, which are of other classes: can the class still be read off the features?
*All else*: forget images against images that were never trained on, of the same classes in the same proportions: can it be
read off them that the forget images were? (Of several labels an image has no class, so these are compared as they are.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from excise.client import audit
from excise.client.compute import device_of, to_device
from excise.client.rounds.features import features_of
from excise.client.rounds.losses import evenly_spread
from excise.client.rounds.model import check_model, load_model
from excise.client.site import Site
from excise.common.messages import ProbeQuery, ProbeReply
from excise.common.request import RequestKind

MOST = 2000
"""Most images of a side: enough for the second decimal of an AUC, few enough to be probed in seconds."""
SEED = 0
"""Of the deal of patients: the same for every model, so that they are compared on the same."""


@dataclass(frozen=True)
class Sides:
    """Rows of the images that are compared, which of them are forget images, and what each weighs."""

    rows: Tensor
    forget_N: NDArray[np.bool_]
    weights_N: NDArray[np.float64]


def answer(site: Site, query: ProbeQuery) -> ProbeReply:
    """Probe each model; nothing is told of fewer than `min_count` images, or of fewer patients."""
    from excise.client.probe import probe_auc  # scikit-learn takes seconds to import, and few requests ask for it

    check_model(site, query.model)
    sides, metrics = _sides(site, query), {}
    if sides is None:
        return ProbeReply(metrics={}, images=0)
    patients = [site.scan.rows[i].patient for i in sides.rows.tolist()]
    for name, weights in query.candidates.items():
        model = load_model(site, query.model, weights)
        features_NF = features_of(model, to_device(site.x[sides.rows], device_of(site.config))).cpu().double().numpy()
        auc = probe_auc(features_NF, sides.forget_N, patients, sides.weights_N, SEED)
        if math.isfinite(auc):
            metrics[f"{name}/probe_auc"] = auc
    return ProbeReply(metrics=metrics, images=site.config.policy.told(int(sides.forget_N.sum())) if metrics else 0)


def _sides(site: Site, query: ProbeQuery) -> Sides | None:
    """The images to compare; None where a side has too few, or too few patients."""
    sets, min_count = site.select(query.request), site.config.policy.min_count
    forget, others = sets.forget, sets.retain
    if query.request.kind is not RequestKind.CLASS:
        others = torch.cat([sets.reference, sets.held_out]).sort().values
        if site.y_N.ndim == 1:
            both = set(site.y_N[forget].tolist()) & set(site.y_N[others].tolist())
            both &= set(audit.told_strata(min_count, site.y_N[forget], site.y_N[others]))
            forget, others = (rows[torch.isin(site.y_N[rows], torch.tensor(sorted(both)))] for rows in (forget, others))
    forget, others = (evenly_spread(rows, MOST, site.y_N, min_count) for rows in (forget, others))
    for rows in (forget, others):
        if len(rows) < min_count or len({site.scan.rows[i].patient for i in rows.tolist()}) < min_count:
            return None
    weights_N = np.ones(len(forget) + len(others))
    if query.request.kind is not RequestKind.CLASS and site.y_N.ndim == 1:
        weights_N[len(forget) :] = _as_frequent(site.y_N[forget], site.y_N[others])
    return Sides(torch.cat([forget, others]), np.arange(len(weights_N)) < len(forget), weights_N)


def _as_frequent(y_f: Tensor, y_o: Tensor) -> NDArray[np.float64]:
    """Weights of the other images under which their classes are as frequent as the forget images'."""
    most = int(torch.cat([y_f, y_o]).max()) + 1
    n_f, n_o = y_f.bincount(minlength=most), y_o.bincount(minlength=most)
    return (n_f[y_o] / n_o[y_o]).double().numpy()
