"""Unlearning with all images in one place: the same search, targets and joint steps, without sites and messages.

    from excise.client.unlearning import unlearn

    result = unlearn(model, forget=(x_f, y_f), retain=(x_r, y_r), unseen=(x_u, y_u))
    result.model                               # the student; the model that was given is not changed

It is one site of a federation of one: p_k = 1, a_k = ψ.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from excise.client.unlearning.boundary import BoundaryPath, boundary_search
from excise.client.unlearning.correction import corrected_overshoot, is_corrected, measured_rows
from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import are_labels, boundary_losses, mix_of, sought_labels
from excise.client.unlearning.local import ForgetSet, LocalResult, RetainSet, drawn_rows, unlearn_locally
from excise.client.unlearning.negation import is_step_away, step_away
from excise.client.unlearning.reference import Reference, as_if_unseen, reference_by_stratum
from excise.client.unlearning.targets import make_targets
from excise.common.class_mix import shifted_losses
from excise.common.settings import UnlearningSettings

Images = tuple[Tensor, Tensor]
"""Images (N, channels, *spatial), float32 in [0, 1], and classes, int64 (N,), or labels, float (N, L); all on one device."""


@dataclass(frozen=True)
class Unlearned:
    """What unlearning made.

    Attributes
    ----------
    model : the student, in evaluation mode
    path : the boundary search of the forget images, or of those that `settings.forget_sample` drew
    targets_NC : what the student was to say on them, in the last round
    rounds : how each round's steps went
    passes : images sent through teacher or student
    """

    model: nn.Module
    path: BoundaryPath
    targets_NC: Tensor
    rounds: tuple[LocalResult, ...]
    passes: int


def unlearn(
    model: nn.Module,
    forget: Images,
    retain: Images,
    unseen: Images | None = None,
    settings: UnlearningSettings | None = None,
    seed: int = 0,
    after_round: Callable[[int, nn.Module], bool] | None = None,
    forgotten: Sequence[int] = (),
) -> Unlearned:
    """Make a copy of `model` forget some of its training images.

    Parameters
    ----------
    model : maps images in [0, 1] to logits, so it normalises them itself
    forget : training images to forget, with their classes, int64 (N,); or with labels of 0 and 1, float (N, L)
    retain : training images to keep
    unseen : images that were never trained on, which calibrated targets need
    settings : all that can be chosen; `UnlearningSettings()` when left out
    seed : of the search's noise and the mini-batches
    after_round : called with the number of the round, from 1, and the student; True ends the unlearning there
    forgotten : classes that are forgotten as a whole, when there are several: none is a target for images of another. Of
        labels: those to be forgotten, where an image has them; all else that it has is kept

    Raises
    ------
    Diverged : a round's gradients were not finite, even with smaller steps
    ValueError : no forget images, images outside [0, 1], calibrated targets without `unseen`, or a retain term without images
    """
    settings = settings or UnlearningSettings()
    (x_f, y_f), (x_r, y_r) = forget, retain
    if settings.forget_sample is not None:
        drawn = drawn_rows(y_f, settings.forget_sample, Generator().manual_seed(seed)).to(x_f.device)
        x_f, y_f = x_f[drawn], y_f[drawn]
    mix = mix_of(forget[1], y_r)
    reference: Reference = {}
    passes, points = 0, settings.quantiles
    if settings.target.kind == "calibrated":
        if unseen is None or len(unseen[0]) == 0:
            raise ValueError("calibrated targets need `unseen` images; give some, or choose target.kind = 'nearest'")
        losses = boundary_losses(predict(model, unseen[0]), unseen[1])
        reference = reference_by_stratum(losses, unseen[1], points, y_f)
        if settings.target.label_shift:
            reference = {s: shifted_losses(q, mix.log_odds_shift(s)) for s, q in reference.items()}
        passes += len(unseen[0])
    largest = settings.target.overshoot * max((float(q[-1].max()) for q in reference.values()), default=math.inf)
    sought = sought_labels(y_f, forgotten) if are_labels(y_f) else None
    path = boundary_search(model, x_f, y_f, settings.search, Generator().manual_seed(seed), largest, sought)
    passes += path.passes
    if reference and unseen is not None and settings.target.level == "retain":
        x_k, y_k = _alike(retain, y_f, len(unseen[0]))
        trained = reference_by_stratum(boundary_losses(predict(model, x_k), y_k), y_k, points, y_f)
        reference = as_if_unseen(boundary_losses(path.logits_TNC[0], y_f), y_f, trained, reference)
        passes += len(x_k)
    targets = make_targets(path.logits_TNC, y_f, settings.target, reference, forgotten)
    logits = None
    if settings.local.distil > 0 and settings.psi < 1:
        logits = predict(model, x_r)
        passes += len(x_r)

    student = copy.deepcopy(model)
    teacher = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    kept = RetainSet(x_r, y_r, logits) if settings.psi < 1 else None
    rounds: list[LocalResult] = []
    for r in range(settings.local.rounds):
        if reference and is_corrected(settings.target, r):
            looked = measured_rows(path.logits_TNC, y_f, settings.target.looks)
            overshoot = corrected_overshoot(student, x_f[looked], y_f[looked], settings.target, reference, forgotten)
            targets = make_targets(path.logits_TNC, y_f, settings.target, reference, forgotten, overshoot)
            passes += len(looked)
        searched = ForgetSet(x_f, targets, sought is not None, mix.distance())
        batches = Generator().manual_seed(seed * 1_000_003 + r)
        if is_step_away(settings, r, x_f):
            result = step_away(student, x_f, y_f, settings.negation, settings.local.clip_norm, batches)
        else:
            result = unlearn_locally(student, searched, kept, settings.psi, settings.local, r, batches, teacher)
        rounds.append(result)
        passes += result.passes
        if after_round and after_round(r + 1, student):
            break
    return Unlearned(student.eval(), path, targets, tuple(rounds), passes)


def _alike(retain: Images, y_f: Tensor, most: int) -> Images:
    """At most `most` retain images, evenly spread, of the classes of the forget images."""
    x, y = retain
    rows = torch.arange(len(y), device=y.device) if are_labels(y) else torch.isin(y, y_f).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("target.level = 'retain' needs retain images of the forget images' classes; there are none")
    chosen = min(len(rows), most)
    rows = rows[torch.arange(chosen, device=rows.device) * len(rows) // chosen]
    return x[rows], y[rows]
