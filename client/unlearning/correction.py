"""How far targets overshoot, by what the student has reached: the whole way while it is short, less where it went too far.

Calibrated targets ask for `overshoot` times the reference losses, since a few steps carry the student only part of the way.
How far they carry it differs between tasks: by how well the teacher knows its training images, by how much the retain images
resist. What the student should reach does not: on the forget images the mean probability of the true class that the teacher
has on images of the same classes that it never saw. Between rounds a site measures where the student stands, and sets the
factor anew:

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
from excise.client.unlearning.labels import confidence, place_of, sought_labels, strata
from excise.client.unlearning.reference import Reference
from excise.common.settings import TargetSettings

MEASURED = 64
"""Forget images of which a mean is as certain as `band` supposes; over fewer the band is wider."""


def is_corrected(settings: TargetSettings, round_index: int) -> bool:
    """Whether targets of this kind are set anew in round `round_index`, counted from 0: the teacher itself needs the whole."""
    return settings.kind == "calibrated" and settings.band > 0 and settings.overshoot > 1 and round_index > 0


def measured_rows(logits_TNC: Tensor, y_N: Tensor, looks: int, min_count: int = 1) -> Tensor:
    """Rows of the forget images that are looked at: `looks` of them, evenly spaced in the order of difficulty.

    All of them where fewer than `min_count` would be left: beside a number over all, one over these would tell of the others.
    """
    n, most = len(y_N), max(looks, min_count)
    if n < most + min_count:
        return torch.arange(n, device=y_N.device)
    losses = path_losses(logits_TNC, y_N).mean(0)
    order = (losses if losses.ndim == 1 else losses.mean(1)).argsort(stable=True)
    return order[(2 * torch.arange(most, device=order.device) + 1) * n // (2 * most)]


def corrected_overshoot(
    student: nn.Module,
    x: Tensor,
    y_N: Tensor,
    settings: TargetSettings,
    reference: Reference,
    forgotten: Sequence[int] = (),
) -> Tensor:
    """The factor on the reference losses for this round, between 1/overshoot and overshoot: one number, or one a label (L,).

    Parameters
    ----------
    student : the model as it came; looked at in evaluation mode
    x : forget images to look at (`measured_rows`), in [0, 1], (N, channels, *spatial). A mean over few is uncertain, so for
        fewer than `MEASURED` (of which a label is to be forgotten) the band is wider
    y_N : their classes, int64 (N,), or labels, float (N, L)
    reference : the teacher's losses on unseen images, for each stratum of `y_N`
    forgotten : of labels those to be forgotten, which alone are looked at, where an image has them

    Raises
    ------
    ValueError : `settings` sets no band
    """
    if settings.band == 0:
        raise ValueError("the overshoot is corrected within a band, and none is set")
    reached = confidence(predict(student, x), y_N).double()
    above = reached.clone()
    for s in strata(y_N):
        above[place_of(s, y_N)] -= torch.exp(-reference[s].to(reached)).mean()
    # A label that none of these images has to forget stays at its mark.
    sought = sought_labels(y_N, forgotten) if y_N.ndim > 1 else torch.ones_like(y_N, dtype=torch.bool)
    seen = sought.sum(0).clamp_min(1)
    above = (above * sought).sum(0) / seen
    band = settings.band * (MEASURED / seen).sqrt().clamp_min(1)
    return torch.as_tensor(settings.overshoot, dtype=reached.dtype) ** (1 + above / band).clamp(-1, 1)
