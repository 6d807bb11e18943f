"""Mean and covariance of the deployed model's features: all that the axes of an embedding are found from."""

from __future__ import annotations

import numpy as np

from excise.client.embedding import moments
from excise.client.rounds.embedding import shown, sketched
from excise.client.rounds.model import check_model
from excise.client.site import Site
from excise.common.embedding import IMAGES_PER_DIM
from excise.common.messages import MomentsQuery, MomentsReply


def answer(site: Site, query: MomentsQuery) -> MomentsReply:
    """The moments of the images that would be shown; nothing where they are too few for as many numbers."""
    check_model(site, query.model)
    rows, policy = shown(site, query.request, query.points).rows, site.config.policy
    if len(rows) == 0:
        return MomentsReply(images=0, mean=(), covariance=(), passes=0)
    sketched_NK = sketched(site, query.model, query.weights, rows, query.dims)
    passes, dims = policy.told(len(rows)), sketched_NK.shape[1]
    if len(rows) < max(policy.min_count, IMAGES_PER_DIM * dims):
        return MomentsReply(images=0, mean=(), covariance=(), passes=passes)
    mean_K, covariance_KK = moments(sketched_NK)
    upper = covariance_KK[np.triu_indices(dims)]
    return MomentsReply(images=passes, mean=tuple(mean_K.tolist()), covariance=tuple(upper.tolist()), passes=passes)
