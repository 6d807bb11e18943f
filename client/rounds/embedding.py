"""Where do two models put the images? Two numbers an image, on a grid, in an order that tells nothing (docs/adr/0021).

Data of each image by itself leave in no other round; so a site's policy has to allow this one by name (`embeddings`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from excise.client.compute import device_of, to_device
from excise.client.embedding import cells, chosen, sketch
from excise.client.keyed import keyed
from excise.client.rounds.features import features_of
from excise.client.rounds.model import SiteFailure, check_model, load_model
from excise.client.site import Site
from excise.common.embedding import DIMS, GROUPS, UNTOLD
from excise.common.errors import MessageError, SiteError
from excise.common.messages import EmbeddingQuery, EmbeddingReply
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest
from excise.common.weights import Weights, digest


@dataclass(frozen=True)
class Shown:
    """Rows of the images that are shown, and the group and class of each."""

    rows: Tensor
    groups_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]


def answer(site: Site, query: EmbeddingQuery) -> EmbeddingReply:
    """Cells before and after, the same image at the same place of both.

    Raises
    ------
    MessageError : there are not two models, or axes that cannot be those of one projection
    SiteFailure : a feature is not finite
    """
    check_model(site, query.model)
    if query.candidates.keys() != {"before", "after"}:
        raise MessageError(f"an embedding is of the models 'before' and 'after', got {sorted(query.candidates)}")
    images = shown(site, query.request, query.points)
    if len(images.rows) == 0:
        return EmbeddingReply(before=(), after=(), groups=(), labels=(), passes=0)
    before, after = query.candidates["before"], query.candidates["after"]
    # Another question, another order: points of two answers cannot be joined by their places in them.
    asked = f"{query.mean!r}|{query.axes!r}|{query.unit!r}"
    about = f"order|{query.request.digest}|{digest(before)}|{digest(after)}|{asked}"
    order = _by_key(site, images.rows, about)
    rows, told = images.rows[order], site.config.policy.told
    places = [_places(site, query, weights, rows) for weights in (before, after)]
    return EmbeddingReply(
        before=places[0],
        after=places[1],
        groups=tuple(map(float, images.groups_N[order])),
        labels=tuple(map(float, images.labels_N[order])),
        passes=told(2 * len(rows)),
    )


def shown(site: Site, request: ForgetRequest, most: int) -> Shown:
    """The images of a request that are shown, the same in every round of it and for every model.

    Which they are follows from the site's secret: nobody else knows them, and asking again shows no others.
    """
    sets, policy = site.select(request), site.config.policy
    rows = torch.cat([sets.forget, sets.retain, sets.reference])
    groups_N = np.repeat(np.arange(len(GROUPS)), [len(sets.forget), len(sets.retain), len(sets.reference)])
    several = site.y_N.ndim > 1
    labels_N = np.full(len(rows), UNTOLD, dtype=np.int64) if several else site.y_N[rows].numpy()
    keys = _keys(site, rows, f"chosen|{request.digest}")
    kept = chosen(groups_N, labels_N, keys, most, policy.min_count, policy.exact_counts)
    return Shown(rows[kept], groups_N[kept], labels_N[kept])


def sketched(site: Site, spec: ModelSpec, weights: Weights, rows: Tensor, dims: int) -> NDArray[np.float64]:
    """Features of these rows in at most `dims` dimensions, (N, K).

    Raises
    ------
    MessageError : these are not between 1 and `DIMS`
    SiteFailure : a feature is not finite
    """
    if not 1 <= dims <= DIMS:
        raise MessageError(f"features are brought to 1 to {DIMS} dimensions here, not to {dims}")
    model = load_model(site, spec, weights)
    features_NF = features_of(model, to_device(site.x[rows], device_of(site.config))).cpu().double().numpy()
    if not np.isfinite(features_NF).all():
        raise SiteFailure(SiteError.DIVERGED, "the model's features are not finite: its training diverged")
    projected: NDArray[np.float64] = features_NF.reshape(len(rows), -1) @ sketch(features_NF[0].size, dims)
    return projected


def _places(site: Site, query: EmbeddingQuery, weights: Weights, rows: Tensor) -> tuple[float, ...]:
    sketched_NK = sketched(site, query.model, weights, rows, len(query.mean))
    dims = sketched_NK.shape[1]
    if len(query.mean) != dims or len(query.axes) != 2 * dims:
        raise MessageError(
            f"expected a mean of {dims} numbers and 2 axes, got {len(query.mean)} and {len(query.axes)} numbers"
        )
    axes_2K = np.array(query.axes).reshape(2, dims)
    if not np.allclose(axes_2K @ axes_2K.T, np.eye(2), atol=1e-6) or not 0 < query.unit < math.inf:
        raise MessageError("the axes of an embedding should be of length 1 and at right angles, its unit above 0")
    return tuple(cells(sketched_NK, np.array(query.mean), axes_2K, query.unit).flatten().tolist())


def _by_key(site: Site, rows: Tensor, about: str) -> list[int]:
    keys = _keys(site, rows, about)
    return sorted(range(len(keys)), key=keys.__getitem__)


def _keys(site: Site, rows: Tensor, about: str) -> list[str]:
    """A keyed hash of each image, which only this site can make."""
    return [keyed(site.config.split.key, f"embedding|{about}|{site.scan.rows[i].item}") for i in rows.tolist()]
