"""What a site does in each kind of round: one function each, from the message that came to the message that leaves."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from excise.client import audit
from excise.client.compute import device_of, placed, to_device
from excise.client.preparation import Preparation, forgotten_classes, prepare_unlearning
from excise.client.site import Site
from excise.client.training import train_locally
from excise.client.unlearning.correction import corrected_overshoot, is_corrected, measured_rows
from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import boundary_losses, mix_of, place_of, scored_labels, sought_labels, strata
from excise.client.unlearning.local import Diverged, ForgetSet, RetainSet, unlearn_locally
from excise.client.unlearning.reference import Reference, as_if_unseen
from excise.client.unlearning.targets import make_targets
from excise.common import weights as w
from excise.common.errors import DataError, ExciseError, MessageError, SiteError
from excise.common.messages import (
    AuditQuery,
    AuditReply,
    FitInstruction,
    ModelAudit,
    ReferenceQuery,
    ReferenceReply,
    SiteStatus,
    SiteUpdate,
    StatusQuery,
    UnlearnInstruction,
)
from excise.common.models import ModelSpec, build_model, known_models
from excise.common.profiles import ALL_CLASSES, losses_of

PROFILE_POINTS = 64  # most points of a loss profile in an audit: enough for the second decimal of an AUC


class SiteFailure(ExciseError):
    """A failure whose code the coordinator may know."""

    def __init__(self, code: SiteError, message: str) -> None:
        super().__init__(message)
        self.code = code


def status(site: Site, query: StatusQuery) -> SiteStatus:
    """Count the images of each set; refuse here, before anything is trained, what cannot be carried out on these images.

    Raises
    ------
    RequestError : a request of kind class matches images without the labels it names
    """
    sets = site.select(query.request)
    for request in (query.request, *query.parts):
        if request:
            forgotten_classes(site, site.y_N[site.select(request).forget], request)
    return SiteStatus(
        site=site.config.name,
        train=len(sets.forget) + len(sets.retain),
        forget=len(sets.forget),
        excluded=len(sets.excluded),
        reference=len(sets.reference),
        held_out=len(sets.held_out),
        skipped=len(site.scan.problems),
        forgotten=site.forgotten,
        parts=tuple(float(len(site.select(part).forget)) for part in query.parts),
        classes=site.config.data.classes,
    )


def reference(site: Site, query: ReferenceQuery) -> ReferenceReply:
    """Keep the teacher, and tell its losses on the images that were never trained on, each class for itself where it can."""
    _check_model(site, query.model)
    w.save_weights(query.teacher, _teacher_path(site, w.digest(query.teacher)))
    sets, min_count = site.select(query.request), site.config.policy.min_count
    # All that was never trained on: a small reference misleads. Audits tell of the two sets apart, so neither may be small.
    asked = {"unseen": [sets.reference, sets.held_out]}
    if query.trained:
        asked["trained"] = [_some(sets.retain, len(sets.reference) + len(sets.held_out), site.y_N, min_count)]
    teacher = _load(site, query.model, query.teacher)
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
            for key, (places, losses_N) in _losses_by_stratum(logits, y, audit.told_strata(min_count, y)).items():
                found[key].append((rows[places], losses_N))
        for key, told in found.items():
            of = [site.scan.rows[i].patient for rows, _ in told for i in rows.tolist()]
            losses_N = np.concatenate([losses_N for _, losses_N in told])
            profile = audit.loss_profile(losses_N, query.points, min_count, audit.patient_weights(of))
            if profile:
                profiles[f"{name}/{key}"], patients[f"{name}/{key}"] = profile, len(set(of))
    return ReferenceReply(profiles=profiles, patients=patients, passes=passes)


def _losses_by_stratum(logits: Tensor, y: Tensor, told: Sequence[int]) -> dict[str, tuple[Tensor, NDArray[np.float64]]]:
    """Rows and losses of all images, of several labels their means, and of each stratum in `told`."""
    losses = boundary_losses(logits, y).double()
    places = {str(s): place_of(s, y) for s in told}
    each = {key: (place[0].nonzero().flatten(), losses[place].numpy()) for key, place in places.items()}
    whole = losses if losses.ndim == 1 else losses.mean(1)
    return {ALL_CLASSES: (torch.arange(len(y)), whole.numpy()), **each}


def fit(site: Site, instruction: FitInstruction) -> SiteUpdate:
    """Ordinary local training on the training images, without those of `instruction.without`."""
    began = time.perf_counter()
    _check_model(site, instruction.model)
    index = site.select(instruction.without).retain
    if len(index) == 0:
        raise DataError("no training image is left")
    model, device = _load(site, instruction.model, instruction.weights), device_of(site.config)
    generator = Generator().manual_seed(instruction.seed)
    x, y_N = to_device(site.x[index], device), to_device(site.y_N[index], device)
    loss, passes = train_locally(model, x, y_N, instruction.training, instruction.round_index, generator)
    told = {"loss": loss} if len(index) >= site.config.policy.min_count else {}
    return _update(instruction.weights, model, passes, began, told)


def unlearn(site: Site, instruction: UnlearnInstruction) -> SiteUpdate:
    """A few joint steps on this site's share of the unlearning objective."""
    began = time.perf_counter()
    _check_model(site, instruction.model)
    sets, device = site.select(instruction.request), device_of(site.config)
    teacher_weights = _read_teacher(site, instruction.teacher_digest)
    teacher = _load(site, instruction.model, teacher_weights)
    prepared = prepare_unlearning(site, sets, teacher, instruction)
    student = _load(site, instruction.model, instruction.weights)
    forget, aimed, looks = _forget_set(site, prepared, site.y_N[sets.retain], student, instruction, device)
    retain = None
    if len(sets.retain) and instruction.a_k < 1:
        logits = prepared.teacher_logits_NC
        x, y_N = to_device(site.x[sets.retain], device), to_device(site.y_N[sets.retain], device)
        retain = RetainSet(x, y_N, logits.to(device) if logits is not None else None)
    try:
        result = unlearn_locally(
            student,
            forget,
            retain,
            instruction.a_k,
            instruction.settings.local,
            instruction.round_index,
            Generator().manual_seed(instruction.seed),
            {name: tensor.to(device) for name, tensor in teacher_weights.items()},
        )
    except Diverged as error:
        raise SiteFailure(SiteError.DIVERGED, str(error)) from error
    # Means over fewer than `min_count` images stay here, as in an audit.
    measured = {"gradient_norm": result.gradient_norm, "step_sum": result.step_sum}
    ascent = torch.empty(0)
    if len(sets.retain) >= site.config.policy.min_count:
        measured["retain_loss"] = result.retain_loss
    if len(prepared.forget) >= site.config.policy.min_count:
        measured["forget_loss"] = result.forget_loss
        measured |= aimed | {name: float(value) for name, value in prepared.measured.items() if name != "ascent"}
        ascent = prepared.measured.get("ascent", ascent)
    update = _update(instruction.weights, student, prepared.passes + looks + result.passes, began, measured)
    return replace(update, ascent=tuple(ascent[~ascent.isnan()].tolist()))


def _forget_set(
    site: Site, prepared: Preparation, y_R: Tensor, student: nn.Module, instruction: UnlearnInstruction, device: torch.device
) -> tuple[ForgetSet | None, dict[str, float], int]:
    """The forget images with the targets of this round; what may be told of its overshoot, and images looked at for that.

    `y_R` are the retain images' classes.
    """
    if prepared.logits_TNC is None:
        return None, {}, 0
    settings = instruction.settings.target
    x, y_N = to_device(site.x[prepared.forget], device), to_device(site.y_N[prepared.forget], device)
    logits_TNC = to_device(prepared.logits_TNC, device)
    reference, trained = _reference_of(instruction.reference, y_N), _reference_of(instruction.trained, y_N)
    if trained:
        reference = as_if_unseen(boundary_losses(logits_TNC[0], y_N), y_N, trained, reference)
    overshoot, told, looks = None, {}, 0
    if reference and is_corrected(settings, instruction.round_index):
        min_count = site.config.policy.min_count
        looked = measured_rows(logits_TNC, y_N, settings.looks, min_count)
        overshoot = corrected_overshoot(student, x[looked], y_N[looked], settings, reference, prepared.forgotten)
        looks = len(looked)
        told = _told_overshoot(overshoot, y_N[looked], prepared.forgotten, min_count)
    targets = make_targets(logits_TNC, y_N, settings, reference, prepared.forgotten, overshoot)
    distance = mix_of(y_N.cpu(), y_R).distance()
    return ForgetSet(x, targets, labels=y_N.ndim > 1, distance=distance), told, looks


def _told_overshoot(overshoot: Tensor, y: Tensor, forgotten: Sequence[int], min_count: int) -> dict[str, float]:
    """The factor, of labels the mean of those that may be told; it tells the mean confidence on the images looked at."""
    if y.ndim == 1:
        return {"overshoot": float(overshoot)} if len(y) >= min_count else {}
    scored = scored_labels(sought_labels(y, forgotten), min_count).any(0)
    return {"overshoot": float(overshoot[scored].mean())} if bool(scored.any()) else {}


def _reference_of(told: Mapping[str, Sequence[float]], y: Tensor) -> Reference:
    """For each stratum in `y` the losses that were told of it, or stand for it; empty when nothing was told."""
    if not told:
        return {}
    if ALL_CLASSES not in told:
        raise MessageError(f"reference losses came without those of '{ALL_CLASSES}' classes together")
    return {s: torch.tensor(losses_of(s, told, y.ndim > 1), dtype=torch.float64) for s in strata(y)}


def evaluate(site: Site, query: AuditQuery) -> AuditReply:
    """Score models on the forget, retain, reference and held-out images."""
    _check_model(site, query.model)
    sets = site.select(query.request)
    audited = {"forget": sets.forget, "retain": sets.retain, "reference": sets.reference, "held_out": sets.held_out}
    min_count = site.config.policy.min_count
    if query.brief:
        audited |= {"retain": _some(sets.retain, len(sets.reference), site.y_N, min_count), "held_out": sets.held_out[:0]}
    told = {name: audit.told_strata(min_count, site.y_N[index]) for name, index in audited.items()}
    parts, of_parts = _parts(site, sets.forget, query, min_count)
    audited |= parts
    told |= dict.fromkeys(parts, of_parts)
    audits = {name: _audit(site, query, weights, audited, told) for name, weights in query.candidates.items()}
    return AuditReply(
        metrics={f"{name}/{key}": value for name, told in audits.items() for key, value in told.metrics.items()},
        profiles={f"{name}/{key}": profile for name, told in audits.items() for key, profile in told.profiles.items()},
        passes=len(audits) * sum(len(index) for index in audited.values()),
    )


def _some(index: Tensor, most: int, y_N: Tensor, min_count: int) -> Tensor:
    """At most `most` of the rows, evenly spread, the same in every round; all of them where the others would be too few.

    Beside a number over all rows, one over these would tell that of the others, in any class.
    """
    if not 0 < most < len(index):
        return index[:0] if most == 0 else index
    chosen = torch.arange(most) * len(index) // most
    left = torch.ones(len(index), dtype=torch.bool)
    left[chosen] = False
    y_left = y_N[index[left]]
    few = any(int(place_of(s, y_left)[0].sum()) < min_count for s in strata(y_left))
    return index if few else index[chosen]


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
    site: Site, query: AuditQuery, weights: w.Weights, sets: Mapping[str, Tensor], told: Mapping[str, Sequence[int]]
) -> ModelAudit:
    """Score one model on `sets`, with the strata in `told` of each."""
    min_count = site.config.policy.min_count
    model, device = _load(site, query.model, weights), device_of(site.config)
    metrics: dict[str, float] = {}
    profiles: dict[str, tuple[float, ...]] = {}
    for name, index in sets.items():
        if len(index) < min_count:
            continue
        logits_NC, y_N = predict(model, to_device(site.x[index], device)).cpu(), site.y_N[index]
        measured = audit.measure(logits_NC, y_N, name, min_count, told[name], _sought(site, name, y_N, query))
        metrics |= measured
        if measured and name != "retain":
            for key, (_, losses_N) in _losses_by_stratum(logits_NC, y_N, told[name]).items():
                profile = audit.loss_profile(losses_N, PROFILE_POINTS, min_count)
                if key != ALL_CLASSES and profile and all(map(math.isfinite, profile)):
                    profiles[f"{name}/{key}"] = profile
    return ModelAudit({key: value for key, value in metrics.items() if math.isfinite(value)}, profiles)


def _sought(site: Site, name: str, y: Tensor, query: AuditQuery) -> Tensor | None:
    """Of several labels those that scores of a set of forget images are of: what else these images have is to be kept."""
    requests = {"forget": query.request} | {f"part{i}": part for i, part in enumerate(query.parts)}
    if y.ndim == 1 or name not in requests:
        return None
    return sought_labels(y, forgotten_classes(site, y, requests[name]))


def _update(weights_in: w.Weights, model: nn.Module, passes: int, began: float, metrics: dict[str, float]) -> SiteUpdate:
    delta = w.difference(w.snapshot(model), weights_in)
    if not all(bool(tensor.isfinite().all()) for tensor in delta.values()):
        raise SiteFailure(SiteError.DIVERGED, "training diverged: the update is not finite; use a smaller step size")
    return SiteUpdate(
        weights_in=w.digest(weights_in),
        delta=delta,
        passes=passes,
        seconds=time.perf_counter() - began,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def _load(site: Site, spec: ModelSpec, weights: w.Weights) -> nn.Module:
    model = build_model(spec)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise MessageError(f"the weights that came do not fit the model '{spec.name}': {error}") from error
    return placed(model, spec, site.config).eval()


def _check_model(site: Site, spec: ModelSpec) -> None:
    if spec.name not in (*known_models(), *site.config.models):
        raise SiteFailure(
            SiteError.UNKNOWN_MODEL, f"neither this release of excise nor `models` in site.toml knows the model '{spec.name}'"
        )
    data = site.config.data
    theirs = (spec.classes, spec.multi_label, spec.channels, spec.size, spec.dims)
    ours = (len(data.classes), data.multi_label, data.channels, data.size, data.dims)
    if theirs != ours:
        raise DataError(f"the model wants {theirs} classes, multi_label, channels, pixels, dimensions; we have {ours}")


def _teacher_path(site: Site, digest: str) -> Path:
    return site.config.state / "teachers" / f"{digest}.safetensors"


def _read_teacher(site: Site, digest: str) -> w.Weights:
    path = _teacher_path(site, digest)
    if not path.exists():
        raise SiteFailure(SiteError.TEACHER_MISSING, f"teacher {digest[:12]} never came; it travels in 'query.reference'")
    return w.load_weights(path)
