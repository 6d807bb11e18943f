"""What calibrated targets are calibrated on: how uncertain the teacher would be on the forget images, had it never seen them.

*The teacher's losses on unseen images* tell it of images at large. Forget images may be easier or harder than those. Where
they are a random part of the training images, as single images and patients are, the *retain* images tell by how much: the
teacher was trained on those as well. An image whose loss is among the smallest tenth of trained images' would be among the
smallest tenth of unseen ones', so each forget image is given the unseen loss of its own rank. Images of one device are no
random part: the teacher may know a device well because it has many images of it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def loss_quantiles(losses: Tensor, points: int) -> Tensor:
    """Losses (N,) or (N, L) at `points` evenly spaced levels, ascending: float64 (Q,) or (Q, L)."""
    levels = (torch.arange(points, device=losses.device, dtype=torch.float64) + 0.5) / points
    return losses.double().quantile(levels, dim=0)


def as_if_unseen(losses: Tensor, trained_Q: Tensor, unseen_Q: Tensor) -> Tensor:
    """The losses that forget images would have, had they not been trained on, at as many levels as `unseen_Q`: float64.

    Parameters
    ----------
    losses : teacher's losses on the forget images, (N,); of labels (N, L)
    trained_Q : teacher's losses on retain images at evenly spaced levels, ascending, (Q,) or (Q, L)
    unseen_Q : teacher's losses on images it never saw, likewise
    """
    if losses.ndim > 1:
        columns = [as_if_unseen(*column) for column in zip(losses.T, trained_Q.T, unseen_Q.T, strict=True)]
        return torch.stack(columns, dim=1)
    trained_Q, unseen_Q = trained_Q.double().contiguous(), unseen_Q.double()
    losses = losses.to(trained_Q).contiguous()
    below = torch.searchsorted(trained_Q, losses) + torch.searchsorted(trained_Q, losses, right=True)
    level_N = below.double() / (2 * len(trained_Q)) * (len(unseen_Q) - 1)
    lower = level_N.floor().long().clamp_max(len(unseen_Q) - 2) if len(unseen_Q) > 1 else torch.zeros_like(below)
    unseen_N = torch.lerp(unseen_Q[lower], unseen_Q[(lower + 1).clamp_max(len(unseen_Q) - 1)], level_N - lower)
    return loss_quantiles(unseen_N, len(unseen_Q))
