"""What a site measures of a model on its own images, and the form in which it may be told: aggregates only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from excise.client.unlearning.labels import boundary_losses, has_crossed, place_of, scored_labels, strata
from excise.common.metrics import calibration_error


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


def effective_images(
    losses_N: NDArray[np.float64], patients: Sequence[str], min_count: int, class_N: NDArray[np.int64] | None = None
) -> float:
    """How many independent images a set is worth, where the images of one patient are alike; in [1, N], NaN when untold.

    The number of images, divided by how much larger the variance of their mean rank by loss is when patients are drawn than
    when images are: the *design effect* (Kish, 1965). A membership test looks at ranks alone.

    Parameters
    ----------
    losses_N : loss of each image
    patients : whose it is
    min_count : fewest patients, and images, of which anything is told; of a single patient nothing can be
    class_N : class of each image, when there are such: that a patient's images are of one class does not make them alike for
        a test that compares each class with itself
    """
    names, patient_N = np.unique(np.asarray(patients), return_inverse=True)
    count, images = len(names), len(losses_N)
    if count < max(min_count, 2):
        return math.nan
    from scipy.stats import rankdata  # takes a second to import, and a deployed site starts a process for every message

    rank_N, class_N = rankdata(losses_N), np.zeros(images, dtype=np.int64) if class_N is None else class_N
    rank_N -= (np.bincount(class_N, rank_N) / np.maximum(np.bincount(class_N), 1))[class_N]
    apart = (rank_N**2).sum() * images / (images - 1)
    together = (np.bincount(patient_N, rank_N) ** 2).sum() * count / (count - 1)
    if apart == 0:  # all losses are one: nothing shows how alike the images of a patient are
        return float(count)
    # Never more than there are: chance, not knowledge, makes the images of a patient less alike than those of strangers.
    return float(np.clip(images * apart / max(together, 1e-300), 1, images))


def told_strata(min_count: int, *sets: Tensor) -> list[int]:
    """Strata (`unlearning/labels.py`) of which numbers may leave beside those of whole sets.

    In each of the disjoint `sets` (of classes, or of labels) such a stratum has no image or `min_count`, and so has what is
    left out of the set: else the whole less what is told would tell of a few images. Where that is too little the smallest of
    the others goes untold with it. The sides of each label make up a set by themselves.
    """
    present = sorted({s for y in sets for s in strata(y)})
    sizes = [{s: int(place_of(s, y)[0].sum()) for s in present} for y in sets]
    if not sets or sets[0].ndim == 1:
        return _told(present, sizes, min_count)
    pairs = [[s for s in present if s // 2 == label] for label in range(sets[0].shape[1])]
    return [s for pair in pairs for s in _told(pair, sizes, min_count)]


def _told(whole: Sequence[int], sizes: Sequence[Mapping[int, int]], min_count: int) -> list[int]:
    told = [s for s in whole if all(n[s] == 0 or n[s] >= min_count for n in sizes)]
    told.sort(key=lambda s: -sum(n[s] for n in sizes))
    while told and any(0 < sum(n[s] for s in whole if s not in told) < min_count for n in sizes):
        told.pop()
    return sorted(told)


def measure(
    logits: Tensor, y: Tensor, name: str, min_count: int, told: Sequence[int], sought: Tensor | None = None
) -> dict[str, float]:
    """Metrics of one set of images, keyed ``<name>_<metric>``; nothing when the set is smaller than `min_count`.

    Of labels, accuracy and loss are means over them; `scored` is how many they are means of.

    Parameters
    ----------
    logits : what the model says, (N, C), of labels (N, L)
    y : classes, int64 (N,), or labels of 0 and 1, float (N, L)
    told : strata that are told as well (`told_strata`)
    sought : labels only: those that accuracy and loss are of, bool (N, L), where of a label there are `min_count`; all when
        left out
    """
    right, losses = ~has_crossed(logits, y), boundary_losses(logits, y)
    counted = torch.ones_like(right) if sought is None else scored_labels(sought, min_count)
    if len(y) < min_count or not bool(counted.any()):
        return {}
    found = {
        "images": float(len(y)),
        "scored": float(counted.sum()),
        "accuracy": float(right[counted].float().mean()),
        "loss": float(losses[counted].mean()),
        "ece": calibration_error(logits, y),
    }
    for s in told:
        own = right[place_of(s, y)]
        found |= {f"accuracy_class_{s}": float(own.float().mean()), f"images_class_{s}": float(len(own))}
    return {f"{name}_{key}": value for key, value in found.items()}
