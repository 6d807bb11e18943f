"""What a site measures of a model on its own images, and the form in which it may be told: aggregates only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from excise.common.metrics import accuracy, calibration_error, class_accuracies


def losses(logits_NC: Tensor, y_N: Tensor) -> NDArray[np.float64]:
    """Cross-entropy of each image, nats."""
    return F.cross_entropy(logits_NC, y_N, reduction="none").double().numpy()


def loss_profile(
    losses_N: NDArray[np.float64], points: int, min_count: int, weights_N: NDArray[np.float64] | None = None
) -> tuple[float, ...]:
    """A loss distribution in a form that reveals no single image.

    The sorted losses are cut into parts of equal weight, at most `points` of them and each of at least `min_count` images,
    and each part is told by its mean. Fewer than `min_count` images give an empty profile.

    Parameters
    ----------
    weights_N : weight of each image; equal when left out
    """
    order = np.argsort(losses_N, kind="stable")
    losses_N, weights_N = losses_N[order], np.ones(len(losses_N)) if weights_N is None else weights_N[order]
    share_N = np.cumsum(weights_N) / max(weights_N.sum(), 1e-300)
    for parts in range(min(points, len(losses_N) // min_count), 0, -1):
        # The middle of an image's share decides its part, so that rounding cannot move one that ends on a boundary.
        part_N = np.clip((share_N - weights_N / weights_N.sum() / 2) * parts, 0, parts - 1).astype(np.int64)
        if np.bincount(part_N, minlength=parts).min() >= min_count:
            sums = np.bincount(part_N, weights_N * losses_N, parts)
            return tuple(float(mean) for mean in sums / np.bincount(part_N, weights_N, parts))
    return ()


def patient_weights(patients: Sequence[str]) -> NDArray[np.float64]:
    """Weight of each image so that every patient counts once, however many images there are of them."""
    images = Counter(patients)
    return np.array([1 / images[patient] for patient in patients])


def told_classes(y_N: Tensor, min_count: int) -> list[int]:
    """Classes of which numbers may leave beside those of the whole set.

    Each has `min_count` images, and so have those that are left out, together: else the whole set less what is told would
    tell of a few images. Where they are too few the smallest of the others goes untold with them.
    """
    classes, counts = y_N.unique(return_counts=True)
    told = [(n, c) for c, n in zip(classes.tolist(), counts.tolist(), strict=True) if n >= min_count]
    told.sort(key=lambda of_class: -of_class[0])
    while told and 0 < len(y_N) - sum(n for n, _ in told) < min_count:
        told.pop()
    return sorted(c for _, c in told)


def measure(logits_NC: Tensor, y_N: Tensor, name: str, classes: int, min_count: int) -> dict[str, float]:
    """Metrics of one set of images, keyed ``<name>_<metric>``; nothing when the set is smaller than `min_count`."""
    n = len(y_N)
    if n < min_count:
        return {}
    per_class, told = class_accuracies(logits_NC, y_N, classes), told_classes(y_N, min_count)
    counts = torch.bincount(y_N, minlength=classes)
    found = {
        "images": float(n),
        "accuracy": accuracy(logits_NC, y_N),
        "loss": float(F.cross_entropy(logits_NC, y_N)),
        "ece": calibration_error(logits_NC, y_N),
        **{f"accuracy_class_{c}": per_class[c] for c in told},
        **{f"images_class_{c}": float(counts[c]) for c in told},
    }
    return {f"{name}_{key}": value for key, value in found.items()}
