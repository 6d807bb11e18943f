"""What unlearning needs once per request: the paths of the forget images and the teacher's logits of the retain images.

The teacher is frozen, so neither depends on anything that later rounds do. Both are computed in the first round that asks
for them and kept on the site's disk under (teacher, request, search, images); candidates that read other targets off the same
paths share them.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from excise.client.compute import to_device
from excise.client.selection import Selection
from excise.client.site import Site
from excise.client.unlearning.boundary import boundary_search
from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import scored_labels, sought_labels
from excise.client.unlearning.local import drawn_rows
from excise.common.errors import MessageError, RequestError
from excise.common.messages import UnlearnInstruction
from excise.common.request import ForgetRequest, RequestKind
from excise.common.weights import Weights, load_weights, save_weights

PREPARATIONS = "preparations"
"""Folder below the site's state."""


@dataclass(frozen=True)
class Preparation:
    """Paths and teacher's logits of one site for one request.

    Attributes
    ----------
    forget : rows of the forget images that are searched and trained on: those of `Selection.forget`, or a sample of them
    logits_TNC : the teacher's logits along their paths, off which targets are read; None without any
    forgotten : classes or labels that are forgotten as a whole
    teacher_logits_NC : teacher's logits of the retain images; None when nothing is distilled
    measured : what the search measured; None without one. ``ascent`` (T,), ``crossing_rate`` and ``path_length`` (pixel units)
    passes : images sent through the teacher now; 0 when everything was found on disk
    """

    forget: Tensor
    logits_TNC: Tensor | None
    forgotten: tuple[int, ...]
    teacher_logits_NC: Tensor | None
    measured: dict[str, Tensor]
    passes: int


def prepare_unlearning(site: Site, selection: Selection, teacher: nn.Module, instruction: UnlearnInstruction) -> Preparation:
    """Find the preparation on disk, or compute and keep it.

    Raises
    ------
    StorageError : it cannot be written
    MessageError : a sample is to stand for images that are themselves to be forgotten
    """
    if instruction.settings.forget_sample is not None and instruction.request.kind is not RequestKind.CLASS:
        raise MessageError("forget_sample came for a request that is not of whole classes: nothing may be left out of it")
    key = _key(site, selection, instruction)
    seed = int(key[:12], 16)  # follows from all that the preparation depends on: computed again, it is the same
    path = site.config.state / PREPARATIONS / f"{key}.safetensors"
    passes = 0
    if path.exists():
        found = load_weights(path)
    else:
        found, passes = _compute(site, selection, teacher, instruction, seed)
        if found:  # a site without forget images that distils nothing has nothing to keep
            save_weights(found, path)
    measured = {name: tensor for name, tensor in found.items() if name in ("ascent", "crossing_rate", "path_length")}
    forget = found.get("forget", selection.forget[:0])
    forgotten = forgotten_classes(site, site.y_N[selection.forget], instruction.request)
    return Preparation(forget, found.get("path"), forgotten, found.get("teacher_logits"), measured, passes)


def _compute(
    site: Site, selection: Selection, teacher: nn.Module, instruction: UnlearnInstruction, seed: int
) -> tuple[Weights, int]:
    """Search the forget images, and send the retain images through the teacher where it is distilled."""
    settings, device = instruction.settings, next(teacher.parameters()).device
    found: Weights = {}
    passes = 0
    if instruction.a_k > 0:
        generator = Generator().manual_seed(seed)
        y_F, min_count = site.y_N[selection.forget], site.config.policy.min_count
        forget = selection.forget[drawn_rows(y_F, settings.forget_sample, generator, min_count)]
        x, y_N = to_device(site.x[forget], device), to_device(site.y_N[forget], device)
        sought = sought_labels(y_N, forgotten_classes(site, y_F, instruction.request)) if y_N.ndim > 1 else None
        path = boundary_search(teacher, x, y_N, settings.search, generator, _largest_loss(instruction), sought)
        found["forget"] = forget
        # Of other targets than calibrated ones only the end of the path is asked.
        found["path"] = (path.logits_TNC if instruction.reference else path.logits_TNC[-1:]).cpu()
        # Over fewer images than `min_count` nothing is told: the last ones still searching, one day only one.
        searching_T = torch.tensor([int((path.steps_N > t).sum()) for t in range(len(path.ascent_T))])
        found["ascent"] = path.ascent_T.masked_fill(searching_T < min_count, torch.nan)
        crossed = path.crossed_N if sought is None else path.crossed_N[scored_labels(sought, min_count)]
        found["crossing_rate"] = crossed.float().mean().cpu()
        found["path_length"] = path.length_N.mean().cpu()
        passes += path.passes
    if settings.local.distil > 0 and instruction.a_k < 1:
        found["teacher_logits"] = predict(teacher, to_device(site.x[selection.retain], device)).cpu()
        passes += len(selection.retain)
    return found, passes


def _largest_loss(instruction: UnlearnInstruction) -> float:
    """The largest loss that targets may ask for; none is too large for targets that are not calibrated."""
    largest = max((quantiles[-1] for quantiles in instruction.reference.values()), default=math.inf)
    return instruction.settings.target.overshoot * largest


def forgotten_classes(site: Site, y_N: Tensor, request: ForgetRequest) -> tuple[int, ...]:
    """Classes that nothing may be taken for any more: for requests of whole classes, all that the request names here.

    Of labels those that it names: what else the images `y_N` have is kept.

    Raises
    ------
    RequestError : an image has none of the labels that the request names
    """
    if request.kind is not RequestKind.CLASS:
        return ()
    names = site.config.data.classes
    if y_N.ndim > 1:
        labels = [c for c, name in enumerate(names) if request.predicate.asserts("class", name, site.lists)]
        if bool((y_N[:, labels] < 0.5).all(1).any()):
            raise RequestError(
                f"request '{request.id}' of kind class matches images that have none of the labels it names; name the labels "
                "in `where` and join other conditions by `and`, or choose the kind that is meant"
            )
        return tuple(labels)
    named = [
        c for c, name in enumerate(names) if request.predicate.matches({"class": name, "site": site.config.name}, site.lists)
    ]
    return tuple(sorted({*named, *y_N.unique().tolist()}))


def _key(site: Site, selection: Selection, instruction: UnlearnInstruction) -> str:
    """SHA-256 over all that the preparation depends on, the images by their identifiers and labels."""
    sha = hashlib.sha256()
    settings = instruction.settings
    for part in (
        instruction.teacher_digest,
        instruction.model.model_dump_json(),
        instruction.request.digest,
        settings.search.model_dump_json(),
        str(_largest_loss(instruction)),
        str(settings.forget_sample),
        site.config.compute.model_dump_json(),
        str(site.config.policy.min_count),
        str((settings.local.distil > 0, instruction.a_k < 1, instruction.a_k > 0)),
        *(f"{site.scan.rows[i].item}|{site.scan.rows[i].label}" for i in selection.forget.tolist()),
        "retain",
        *(site.scan.rows[i].item for i in selection.retain.tolist()),
    ):
        sha.update(part.encode() + b"\0")
    return sha.hexdigest()[:24]
