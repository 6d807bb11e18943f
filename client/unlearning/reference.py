"""What calibrated targets are calibrated on: how uncertain the teacher would be on the forget images, had it never seen them.

*The teacher's losses on unseen images* tell it, class by class: a model is not as good on every class, and the forget images'
mix of classes is their own. (Of labels: side by side of each label; see the strata of `labels.py`.) Forget images may be
easier or harder than those. Where they are a random part of the training images, as single images are, the *retain* images
tell by how much: the teacher was trained on those as well. An image whose loss is among the smallest tenth of trained images'
would be among the smallest tenth of unseen ones', so each forget image is given the unseen loss of its own rank. Images of
one device are no random part: the teacher may know a device well because it has many images of it.

A *reference* holds losses at evenly spaced levels, ascending, float64 (Q,), by stratum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from excise.client.unlearning.labels import place_of, strata

Reference = Mapping[int, Tensor]


def loss_quantiles(losses_N: Tensor, points: int) -> Tensor:
    """Losses at `points` evenly spaced levels, ascending, float64 (Q,)."""
    levels = (torch.arange(points, device=losses_N.device, dtype=torch.float64) + 0.5) / points
    return losses_N.double().quantile(levels)


def reference_by_stratum(losses: Tensor, y: Tensor, points: int, of: Tensor) -> Reference:
    """References out of losses (N,), of labels (N, L), for each stratum of `of`.

    A class without any image in `y` is given that of all classes together; a side of a label that of the same side of all.
    """
    found = {}
    for s in strata(of):
        own = losses[place_of(s, y)]
        if len(own) == 0 and y.ndim > 1:
            own = losses[(y > 0.5) == bool(s % 2)]
        found[s] = loss_quantiles(own if len(own) else losses.flatten(), points)
    return found


def as_if_unseen(losses: Tensor, y: Tensor, trained: Reference, unseen: Reference) -> Reference:
    """The reference that forget images would have, had they not been trained on, with as many levels as `unseen`.

    Parameters
    ----------
    losses : teacher's losses on the forget images, (N,); of labels (N, L)
    y : their classes (N,), or labels (N, L)
    trained, unseen : what the teacher's losses on retain images, and on images it never saw, are
    """
    return {s: _unseen_losses(losses[place_of(s, y)], trained[s], unseen[s]) for s in strata(y)}


def _unseen_losses(losses_N: Tensor, trained_Q: Tensor, unseen_Q: Tensor) -> Tensor:
    """The unseen loss of each image's rank among trained images, at evenly spaced levels again."""
    trained_Q, unseen_Q = trained_Q.contiguous(), unseen_Q.to(trained_Q)
    losses_N = losses_N.to(trained_Q).contiguous()
    below_N = torch.searchsorted(trained_Q, losses_N) + torch.searchsorted(trained_Q, losses_N, right=True)
    last = len(unseen_Q) - 1
    level_N = below_N.double() / (2 * len(trained_Q)) * last
    lower_N = level_N.floor().long().clamp(0, max(last - 1, 0))
    unseen_N = torch.lerp(unseen_Q[lower_N], unseen_Q[(lower_N + 1).clamp_max(last)], level_N - lower_N)
    return loss_quantiles(unseen_N, len(unseen_Q))
