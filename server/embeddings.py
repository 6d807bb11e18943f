"""Where the deployed and the revised model put the images: one point each, on the same axes, from the sites that allow it.

    1. moments      every site: mean and covariance of the deployed model's features  →  two axes (`server/projection.py`)
    2. embedding    the sites that told: their images' cells on these axes, before and after

Images and features stay at the sites, and points have no names (docs/adr/0021). It is a picture for people and decides
nothing: a run goes on without the sites that refuse, are silent or answer what cannot be, and without it where none is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from excise.common import messages as m
from excise.common.embedding import CELLS, DIMS, GROUPS, IMAGES_PER_DIM, moments_fault, points_fault
from excise.common.errors import QuorumError, UpdateRefused
from excise.common.weights import Weights, digest
from excise.server.federation import Federation
from excise.server.post import Round
from excise.server.projection import Projection, projection
from excise.server.record import Phase
from excise.server.rounds import RoundResult

EMBEDDINGS = "embeddings.json"
"""In the run's folder: `_page`."""
CHECKPOINT = "embeddings"
TOO_FEW = "too_few"
"""Code of an embedding that was not made because no site has enough images that differ."""


def embed(federation: Federation, before: Weights, after: Weights) -> dict[str, Any]:
    """Write `EMBEDDINGS`; what was done is not done again in a run that was interrupted.

    Returns
    -------
    ``explained``: share of the variance along the axes; ``sites`` and ``points``: how many there are, the latter by group;
    ``cost``. {} where it could not be made, which becomes an event.
    """
    folder, models = federation.folder, {"model_before": digest(before), "model_after": digest(after)}
    phase = folder.load_phase(CHECKPOINT)
    if phase is None or phase.history[0]["models"] != models:
        phase = Phase({}, history=[{"models": models}])
    try:
        if phase.rounds == 0:
            found = _project(federation, before, phase)
            if found is None:
                return _without(federation, [TOO_FEW])
            phase.history.append(asdict(found[0]) | {"sites": found[1]})
            phase.rounds = 1
            folder.save_phase(CHECKPOINT, phase)
        if phase.rounds == 1 or not (folder.path / EMBEDDINGS).exists():
            told = phase.history[1]
            shared = Projection.of(told)
            sites = [site for site in told["sites"] if site in federation.roster.nodes]
            replies = _points(federation, {"before": before, "after": after}, shared, sites, phase)
            page = models | _page(federation, shared, replies)
            folder.write_json(EMBEDDINGS, page, indent=None)
            phase.history[2:] = [_counts(page)]
            phase.rounds = 2
            folder.save_phase(CHECKPOINT, phase)
            folder.event("embeddings", **phase.history[2])
    except QuorumError as error:  # not one site answered
        return _without(federation, error.codes)
    return {**phase.history[2], "cost": phase.cost}


def _without(federation: Federation, codes: Any) -> dict[str, Any]:
    federation.folder.event("not_measured", what=CHECKPOINT, codes=sorted(set(codes)))
    return {}


def _project(federation: Federation, before: Weights, phase: Phase) -> tuple[Projection, list[str]] | None:
    """The axes, and the sites that told moments of the same features; None where nobody did."""
    plan = federation.plan
    replies: dict[str, m.MomentsReply] = {}
    query = m.MomentsQuery(
        model=plan.model,
        weights=before,
        request=plan.request,
        points=plan.verification.embedding_points,
        dims=_dims(federation),
    )

    def use(site: str, reply: m.MomentsReply) -> None:
        _check(moments_fault(reply.images, reply.mean, reply.covariance), site)
        replies[site] = reply

    _spend(phase, federation.ask_willing(Round("moments"), lambda _: query, m.MomentsReply, use), replies)
    told = {site: replies[site] for site in sorted(replies) if replies[site].images}
    if not told:
        return None
    ((dims, _),) = Counter(len(reply.mean) for reply in told.values()).most_common(1)
    same = {
        site: reply for site, reply in told.items() if len(reply.mean) == dims
    }  # whoever tells of others has another model
    axes = projection(
        [reply.images for reply in same.values()],
        [reply.mean for reply in same.values()],
        [reply.covariance for reply in same.values()],
    )
    return (axes, sorted(replies)) if axes else None


def _dims(federation: Federation) -> int:
    """As many dimensions as half of the sites have images for."""
    most = federation.plan.verification.embedding_points
    sizes = sorted(sum(min(most, n) for n in (s.forget, s.retain, s.reference)) for s in federation.status.values())
    return max(2, min(DIMS, sizes[len(sizes) // 2] // IMAGES_PER_DIM))


def _points(
    federation: Federation, models: Mapping[str, Weights], shared: Projection, sites: list[str], phase: Phase
) -> dict[str, m.EmbeddingReply]:
    """What each site answers whose points can be drawn; those that showed nothing left out."""
    plan = federation.plan
    replies: dict[str, m.EmbeddingReply] = {}
    classes, most = 0 if plan.model.multi_label else plan.model.classes, plan.verification.embedding_points
    query = m.EmbeddingQuery(
        model=plan.model,
        candidates=dict(models),
        request=plan.request,
        points=most,
        mean=shared.mean,
        axes=(*shared.axes[0], *shared.axes[1]),
        unit=shared.unit,
    )

    def use(site: str, reply: m.EmbeddingReply) -> None:
        _check(points_fault(reply.before, reply.after, reply.groups, reply.labels, classes, most), site)
        replies[site] = reply

    answer = federation.ask_willing(Round("embedding"), lambda _: query, m.EmbeddingReply, use, sites)
    _spend(phase, answer, replies)
    return {site: replies[site] for site in sorted(replies) if replies[site].groups}


def _check(fault: str, site: str) -> None:
    if fault:
        raise UpdateRefused(fault, f"what {site} says of its images cannot be: {fault}")


def _spend(phase: Phase, answer: RoundResult[Any], replies: Mapping[str, m.MomentsReply | m.EmbeddingReply]) -> None:
    passes = sum(reply.passes for reply in replies.values())
    phase.spend(seconds=answer.seconds, passes=passes, bytes_down=answer.bytes_down, bytes_up=answer.bytes_up)


def _page(federation: Federation, shared: Projection, replies: Mapping[str, m.EmbeddingReply]) -> dict[str, Any]:
    """What is in the file beside the digests of the two models.

    ``explained``; ``groups`` and ``classes``: names; ``sites``: by name, of each point its place ``before`` and ``after``, in
    standard deviations of all sites' images from their mean, and the numbers of its ``group`` and ``class``, the latter −1
    where images have any number of labels. A point's number in these lists is all the name that it has.
    """
    status = federation.status
    classes = next((list(status[site].classes) for site in replies if site in status), [])
    return {
        "explained": list(shared.explained),
        "groups": list(GROUPS),
        "classes": [] if federation.plan.model.multi_label else classes,
        "sites": {
            site: {
                "before": _places(reply.before),
                "after": _places(reply.after),
                "group": [int(group) for group in reply.groups],
                "class": [int(label) for label in reply.labels],
            }
            for site, reply in replies.items()
        },
    }


def _places(cells: tuple[float, ...]) -> list[list[float]]:
    return [[x / CELLS, y / CELLS] for x, y in zip(cells[::2], cells[1::2], strict=True)]


def _counts(page: Mapping[str, Any]) -> dict[str, Any]:
    groups = Counter(group for site in page["sites"].values() for group in site["group"])
    return {
        "explained": [round(share, 4) for share in page["explained"]],
        "sites": len(page["sites"]),
        "points": {name: groups[i] for i, name in enumerate(GROUPS)},
    }
