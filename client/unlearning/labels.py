"""One class an image, or several labels: what the search and the targets need to know of either.

*Classes*: y is int64 (N,), the head a softmax over C classes. *Labels*: y is floating point (N, L), zeros and ones, the head L
sigmoids, and the loss the sum of L binary cross-entropies. Then every label of an image has a boundary of its own, where its
logit changes sign, and a point of the path that crosses one need not cross another.

A model is not as good at everything. What calibration and audits therefore tell apart are *strata*: the classes, or the two
sides of each label, of number 2·l for images without label l and 2·l + 1 for those with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.common.class_mix import ClassMix


def are_labels(y: Tensor) -> bool:
    """Whether `y` holds labels rather than classes.

    Raises
    ------
    ValueError : it is neither
    """
    if y.ndim == 2 and y.is_floating_point() and bool(((y == 0) | (y == 1)).all()):
        return True
    if y.ndim == 1 and not y.is_floating_point():
        return False
    raise ValueError(
        f"expected one class an image, int64 (N,), or labels of 0 and 1, float (N, L); got {y.dtype} of shape {tuple(y.shape)}"
    )


def boundary_losses(logits: Tensor, y: Tensor) -> Tensor:
    """The loss at each boundary: cross-entropy (N,) of classes, binary cross-entropies (N, L) of labels."""
    if y.ndim == 1:
        return F.cross_entropy(logits, y, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none")


def strata(y: Tensor) -> list[int]:
    """Numbers of the strata of `y` that have any image, ascending."""
    if y.ndim == 1:
        found: list[int] = y.unique().tolist()
        return found
    present_S = torch.stack([(y < 0.5).any(0), (y > 0.5).any(0)], dim=1).flatten()
    return [s for s, present in enumerate(present_S.tolist()) if present]


def place_of(stratum: int, y: Tensor) -> tuple[Tensor, ...]:
    """Index of a stratum into what has the shape of `y`: its rows, bool (N,), and of labels the number of the label too."""
    if y.ndim == 1:
        return (y == stratum,)
    label, side = divmod(stratum, 2)
    return (y[:, label] > 0.5) == bool(side), torch.tensor(label, device=y.device)


def mix_of(y_f: Tensor, y_r: Tensor) -> ClassMix:
    """How many forget images, with classes or labels `y_f`, and retain images there are of each stratum."""
    multi_label = are_labels(y_f)
    forget, retain = ({s: float(place_of(s, y)[0].sum()) for s in strata(y)} for y in (y_f, y_r))
    return ClassMix(forget, retain, multi_label)


def has_crossed(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each boundary was crossed, bool: another class (N,), or the other side of each label (N, L)."""
    return logits.argmax(1) != y if y.ndim == 1 else (logits > 0) != (y > 0.5)


def sought_labels(y_NL: Tensor, forgotten: Sequence[int]) -> Tensor:
    """Which labels of each image are to be forgotten, bool (N, L): those named, where an image has them; or all."""
    if not forgotten:
        return torch.ones_like(y_NL, dtype=torch.bool)
    named_L = torch.zeros(y_NL.shape[1], dtype=torch.bool, device=y_NL.device)
    named_L[list(forgotten)] = True
    return named_L & (y_NL > 0.5)


def scored_labels(sought_NL: Tensor, min_count: int) -> Tensor:
    """Those of the labels `sought_NL` over which a number may be told: of each, `min_count` images at least; bool (N, L)."""
    return sought_NL & (sought_NL.sum(0) >= min_count)


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """Probability of the true class (N,), or of the true side of each label (N, L)."""
    if y.ndim == 1:
        return logits.softmax(1).gather(1, y[:, None])[:, 0]
    return ((2 * y - 1) * logits).sigmoid()
