"""Fashion-MNIST or MNIST as one file that a scenario deals out to sites, with made-up patients that name a share of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from excise.common.files import write_atomically
from excise.simulations.fashion import FOLDER, read_fashion
from excise.simulations.mnist import read_mnist

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
    lists : in how many lists withdrawn patients stand, of `share` each: where there are several, their names begin with
        ``withdrawn-1-``, ``withdrawn-2-``, …
    mislabelled : whether those have a wrong class, drawn at random: a device whose labels were mixed up
    seed : of the draws
    """

    images: int = 4000
    share: float = 0.0
    of: int | None = None
    lists: int = 1
    mislabelled: bool = False
    seed: int = 0


def fashion_file(home: Path, recipe: Recipe, folder: Path = FOLDER) -> Path:
    """The file of a recipe for Fashion-MNIST, written below `home` if it is not there.

    Raises
    ------
    DataError : Debian's package of the data is not installed
    StorageError : `home` cannot be written
    """
    return _file(home / "fashion", recipe, partial(read_fashion, "train", folder))


def mnist_file(home: Path, recipe: Recipe) -> Path:
    """The file of a recipe for MNIST, written below `home` if it is not there.

    Raises
    ------
    DataError : the package of the data is not installed
    StorageError : `home` cannot be written
    """
    return _file(home / "mnist", recipe, partial(read_mnist, "train"))


def _file(home: Path, recipe: Recipe, read: Callable[[], tuple[Tensor, Tensor]]) -> Path:
    what = "mislabelled" if recipe.mislabelled else WITHDRAWN
    times = "" if recipe.lists == 1 else f"{recipe.lists}-times-"
    kind = f"{what}-{times}{recipe.share:g}-of-{'all' if recipe.of is None else recipe.of}"
    path = home / f"{recipe.images}-{kind}-{recipe.seed}.npz"
    if path.exists():
        return path
    x, y_N = read()
    images, labels = (x[: recipe.images, 0] * 255).round().byte().numpy(), y_N[: recipe.images].numpy()
    rng = np.random.default_rng(recipe.seed)
    among = np.arange(len(labels)) if recipe.of is None else (labels == recipe.of).nonzero()[0]
    each = round(recipe.share * len(among))
    chosen = rng.permutation(among)[: recipe.lists * each]
    patients = np.array([f"patient-{i}" for i in range(len(labels))], dtype=object)
    for number in range(recipe.lists):
        of = WITHDRAWN if recipe.lists == 1 else f"{WITHDRAWN}-{number + 1}"
        mine = chosen[number * each : (number + 1) * each]
        patients[mine] = [f"{of}-{i}" for i in mine]
    if recipe.mislabelled:
        labels = labels.copy()
        labels[chosen] = (labels[chosen] + rng.integers(1, CLASSES, len(chosen))) % CLASSES
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, images=images, labels=labels, patients=patients.astype(str))
    write_atomically(path, buffer.getvalue())
    return path
