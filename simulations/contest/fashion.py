"""Fashion-MNIST as one file that a scenario deals out to sites, with made-up patients by whom a share of it can be named."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from excise.common.files import write_atomically
from excise.simulations.fashion import FOLDER, read_fashion

WITHDRAWN = "withdrawn"
"""Patients whose names begin so hold the images that are to be forgotten; every image is of a patient of its own."""
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the file holds.

    Attributes
    ----------
    images : how many of the 60,000 of the training file, from its beginning
    share : of the images of class `of`, or of all where that is None, so many are of withdrawn patients, in [0, 1]
    mislabelled : whether those have a wrong class, drawn at random: a device whose labels were mixed up
    seed : of the draws
    """

    images: int = 8000
    share: float = 0.0
    of: int | None = None
    mislabelled: bool = False
    seed: int = 0


def fashion_file(home: Path, recipe: Recipe, folder: Path = FOLDER) -> Path:
    """The file of a recipe, written below `home` if it is not there.

    Raises
    ------
    DataError : Debian's package of the data is not installed
    StorageError : `home` cannot be written
    """
    what = "mislabelled" if recipe.mislabelled else WITHDRAWN
    kind = f"{what}-{recipe.share:g}-of-{'all' if recipe.of is None else recipe.of}"
    path = home / "fashion" / f"{recipe.images}-{kind}-{recipe.seed}.npz"
    if path.exists():
        return path
    x, y_N = read_fashion("train", folder)
    images, labels = (x[: recipe.images, 0] * 255).round().byte().numpy(), y_N[: recipe.images].numpy()
    rng = np.random.default_rng(recipe.seed)
    among = np.arange(len(labels)) if recipe.of is None else (labels == recipe.of).nonzero()[0]
    chosen = rng.permutation(among)[: round(recipe.share * len(among))]
    patients = np.array([f"patient-{i}" for i in range(len(labels))], dtype=object)
    patients[chosen] = [f"{WITHDRAWN}-{i}" for i in chosen]
    if recipe.mislabelled:
        labels = labels.copy()
        labels[chosen] = (labels[chosen] + rng.integers(1, CLASSES, len(chosen))) % CLASSES
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, images=images, labels=labels, patients=patients.astype(str))
    write_atomically(path, buffer.getvalue())
    return path
