"""A request tried at the site alone: whom it concerns, and exactly what would leave, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from excise.client import rounds
from excise.client.leaving import outgoing
from excise.client.site import Site
from excise.client.summary import count
from excise.common import messages as m
from excise.common.embedding import DIMS, POINTS
from excise.common.models import ModelSpec, build_model
from excise.common.profiles import ALL_CLASSES
from excise.common.request import ForgetRequest
from excise.common.settings import PRESETS
from excise.common.weights import Weights, digest, snapshot


@dataclass(frozen=True)
class Leaving:
    """One reply as it would leave.

    Attributes
    ----------
    kind : of the reply
    fields : its parts and fields by name, arrays by their dtype and shape
    size : bytes on the wire
    """

    kind: str
    fields: dict[str, Any]
    size: int


@dataclass(frozen=True)
class DryRun:
    """What a request comes to here.

    Attributes
    ----------
    matched : images that match, by class, maker, model, year and so on; of all splits
    skipped : images that match and cannot be used here so far
    leaving : the replies of its rounds, in their order
    """

    matched: dict[str, dict[str, int]]
    skipped: int
    leaving: tuple[Leaving, ...]


def dry_run(
    site: Site, request: ForgetRequest, spec: ModelSpec, weights: Weights | None = None, tell: Callable[[str], None] = print
) -> DryRun:
    """Carry out one round of each kind for `request`, here, and keep what would leave. The model is changed nowhere.

    Parameters
    ----------
    weights : of the deployed model; a newly made one when left out, which shows the same fields and sizes
    tell : called with the name of each round

    Raises
    ------
    RequestError, DataError : the request cannot be carried out on these images
    Withheld : a reply holds what may not leave
    """
    sets = site.select(request)
    rows = [site.scan.rows[i] for i in sorted([*sets.forget.tolist(), *sets.excluded.tolist()])]
    model = snapshot(build_model(spec, 0)) if weights is None else weights
    leaving: list[Leaving] = []
    for reply, question in _rounds(site, request, spec, model, tell, nothing=len(sets.forget) == 0):
        record = outgoing(reply, question, site.config, site.public_names, accountant=None)
        leaving.append(Leaving(reply.KIND, _fields(record), len(recorddict_to_proto(record).SerializeToString())))
    return DryRun(count(rows), len(site.skipped(request)), tuple(leaving))


def _rounds(
    site: Site, request: ForgetRequest, spec: ModelSpec, model: Weights, tell: Callable[[str], None], nothing: bool
) -> Iterator[tuple[m.Message, m.Message]]:
    settings = PRESETS[request.preset]
    status = m.StatusQuery(request=request)
    tell("status")
    yield rounds.status.answer(site, status), status
    if nothing:
        return
    reference: m.Profiles = {}
    query = m.ReferenceQuery(model=spec, teacher=model, request=request, points=settings.quantiles)
    tell("reference")
    told = rounds.reference.answer(site, query)  # also keeps the teacher here, which the next round asks for
    if settings.target.kind == "calibrated":
        reference = {key.removeprefix("unseen/"): profile for key, profile in told.profiles.items()}
        yield told, query
    if settings.target.kind != "calibrated" or ALL_CLASSES in reference:
        tell("unlearning")
        instruction = m.UnlearnInstruction(
            model=spec,
            weights=model,
            teacher_digest=digest(model),
            request=request,
            settings=settings,
            a_k=settings.psi,
            reference=reference,
            trained={},
            round_index=0,
            seed=0,
        )
        yield rounds.unlearn.answer(site, instruction), instruction
    else:
        tell("no unlearning: too few images here were never trained on to calibrate by; in earnest those of all sites count")
    audit = m.AuditQuery(model=spec, candidates={"deployed": model}, request=request)
    tell("audit")
    yield rounds.audit.answer(site, audit), audit
    if request.linear_probe:
        probe = m.ProbeQuery(model=spec, candidates={"deployed": model}, request=request)
        tell("linear probe")
        yield rounds.probe.answer(site, probe), probe
    if site.config.policy.embeddings:
        yield from _embedding(site, request, spec, model, tell)


def _embedding(
    site: Site, request: ForgetRequest, spec: ModelSpec, model: Weights, tell: Callable[[str], None]
) -> Iterator[tuple[m.Message, m.Message]]:
    """In earnest the axes are those of all sites' images; any two show the same fields and sizes."""
    tell("embedding")
    asked = m.MomentsQuery(model=spec, weights=model, request=request, points=POINTS, dims=DIMS)
    yield rounds.moments.answer(site, asked), asked
    rows = rounds.embedding.shown(site, request, POINTS).rows
    if len(rows) == 0:
        return
    dims = rounds.embedding.sketched(site, spec, model, rows[:1], DIMS).shape[1]
    query = m.EmbeddingQuery(
        model=spec,
        candidates={"before": model, "after": model},
        request=request,
        points=POINTS,
        mean=(0.0,) * dims,
        axes=tuple(np.eye(2, dims).flatten().tolist()),
        unit=1.0,
    )
    yield rounds.embedding.answer(site, query), query


def _fields(record: RecordDict) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, part in record.items():
        if isinstance(part, ArrayRecord):
            told[name] = {key: _described(array) for key, array in part.items()}
        elif isinstance(part, ConfigRecord | MetricRecord):
            told[name] = dict(part)
    return told


def _described(array: Array) -> str:
    """Type, shape and bytes, and what the policy's `privacy` shows in: norm, and numbers that are not zero."""
    x = array.numpy()
    told = f"norm {float(np.linalg.norm(x.astype(np.float64))):.4g}, {np.count_nonzero(x):,} of {x.size:,} not zero"
    return f"{array.dtype} {list(array.shape)}, {len(array.data):,} bytes, {told}"
