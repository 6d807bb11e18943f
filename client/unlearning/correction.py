"""How far targets overshoot, by what the student has reached: the whole way while it is short, less where it went too far.

Calibrated targets ask for `overshoot` times the reference losses, since a few steps carry the student only part of the way.
How far they carry it differs between tasks: by how well the teacher knows its training images, by how much the retain images
resist. What the student should reach does not: on the forget images the mean probability of the true class that the teacher
has on images it never saw. Between rounds a site measures where the student stands, and sets the factor anew:

    overshoot ^ u,    u = 1 + (p_student − p_reference) / band,  clamped to [−1, 1]

The whole overshoot while the student is above its mark; none a band below it; further down, targets that pull it back. There
is no memory in it: a site needs nothing but the model that came.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from excise.client.unlearning.boundary import path_losses
from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import confidence, probability, sought_labels
from excise.client.unlearning.targets import make_targets
from excise.common.settings import TargetSettings

MEASURED = 64
"""Most forget images that one measurement looks at."""


def is_corrected(settings: TargetSettings, round_index: int) -> bool:
    """Whether targets of this kind are set anew in round `round_index`, counted from 0: the teacher itself needs the whole."""
    return settings.kind == "calibrated" and settings.band > 0 and round_index > 0


def corrected_overshoot(
    student: nn.Module,
    x: Tensor,
    logits_TNC: Tensor,
    y_N: Tensor,
    settings: TargetSettings,
    reference_Q: Tensor,
    forgotten: Sequence[int] = (),
) -> float:
    """The factor on the reference losses for this round, between 1/overshoot and overshoot.

    Parameters
    ----------
    student : the model as it came; looked at in evaluation mode
    x : forget images in [0, 1], (N, channels, *spatial); at most `MEASURED` of them are looked at
    logits_TNC : teacher's logits along their paths
    y_N : their classes, int64 (N,), or labels, float (N, L)
    reference_Q : the teacher's losses on reference images, ascending; for labels (Q, L)
    forgotten : labels only: those to be forgotten

    Raises
    ------
    ValueError : `settings` sets no band
    """
    if settings.band == 0:
        raise ValueError("the overshoot is corrected within a band, and none is set")
    rows = _of_all_difficulties(logits_TNC, y_N)
    y = y_N[rows]
    marks = probability(make_targets(logits_TNC, y_N, settings, reference_Q, forgotten, overshoot=1.0)[rows], y)
    above = confidence(predict(student, x[rows]), y) - marks
    if y.ndim > 1:
        above = above[sought_labels(y, forgotten)]
    u = 1 + float(above.mean()) / settings.band
    return float(settings.overshoot ** max(-1.0, min(1.0, u)))


def measured_images(forget_images: int) -> int:
    """How many of the forget images one measurement sends through the student."""
    return min(forget_images, MEASURED)


def _of_all_difficulties(logits_TNC: Tensor, y_N: Tensor) -> Tensor:
    """Rows evenly spaced in the order of difficulty: few of them then stand for all."""
    losses = path_losses(logits_TNC, y_N).mean(0)
    order = (losses if losses.ndim == 1 else losses.mean(1)).argsort(stable=True)
    n, chosen = len(order), measured_images(len(order))
    return order[(2 * torch.arange(chosen, device=order.device) + 1) * n // (2 * chosen)]
