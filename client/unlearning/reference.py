"""What calibrated targets are calibrated on: how uncertain the teacher would be on the forget images, had it never seen them.

*The teacher's losses on unseen images* tell it, class by class: a model is not as good on every class, and the forget images'
mix of classes is their own. Forget images may be easier or harder than those. Where they are a random part of the training
images, as single images are, the *retain* images tell by how much: the teacher was trained on those as well. An image whose
loss is among the smallest tenth of trained images' would be among the smallest tenth of unseen ones', so each forget image is
given the unseen loss of its own rank. Images of one device are no random part: the teacher may know a device well because it
has many images of it.

A *reference* holds losses at evenly spaced levels, ascending, float64 (Q,), by class; of labels, (Q, L), there is one for all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from excise.client.unlearning.labels import are_labels

Reference = Mapping[int, Tensor]
"""By class; of labels under `LABELS`."""
LABELS = -1


def loss_quantiles(losses: Tensor, points: int) -> Tensor:
    """Losses (N,) or (N, L) at `points` evenly spaced levels, ascending: float64 (Q,) or (Q, L)."""
    levels = (torch.arange(points, device=losses.device, dtype=torch.float64) + 0.5) / points
    return losses.double().quantile(levels, dim=0)


def reference_by_class(losses: Tensor, y_N: Tensor, points: int, of: Tensor) -> Reference:
    """References out of the losses of images with the classes or labels `y_N`, for each class in `of`.

    A class without any is given that of all classes together.
    """
    if are_labels(y_N):
        return {LABELS: loss_quantiles(losses, points)}
    found = {}
    for c in of.unique().tolist():
        of_class = losses[y_N == c]
        found[c] = loss_quantiles(of_class if len(of_class) else losses, points)
    return found


def as_if_unseen(losses: Tensor, y_N: Tensor, trained: Reference, unseen: Reference) -> Reference:
    """The reference that forget images would have, had they not been trained on, with as many levels as `unseen`.

    Parameters
    ----------
    losses : teacher's losses on the forget images, (N,); of labels (N, L)
    y_N : their classes, or labels
    trained, unseen : what the teacher's losses on retain images, and on images it never saw, are
    """
    if are_labels(y_N):
        columns = zip(losses.T, trained[LABELS].T, unseen[LABELS].T, strict=True)
        return {LABELS: torch.stack([_unseen_losses(*column) for column in columns], dim=1)}
    return {c: _unseen_losses(losses[y_N == c], trained[c], unseen[c]) for c in y_N.unique().tolist()}


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
