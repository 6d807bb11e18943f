"""The models of `excise bench engine`: a small net on Fashion-MNIST, trained with and without what is forgotten."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Generator, Tensor, nn

from excise.client.training import train_locally
from excise.client.unlearning.inference import predict
from excise.common.metrics import accuracy
from excise.common.models import ModelSpec, build_model
from excise.common.settings import TrainingSettings
from excise.common.weights import load_weights, save_weights, snapshot

Progress = Callable[[str], None]
Images = tuple[Tensor, Tensor]
"""Images (N, 1, 28, 28), float32 in [0, 1], and labels (N,), int64."""

SPEC = ModelSpec(name="allcnn", classes=10, size=28, width=0.25, mean=0.2860, std=0.3530)
TRAINING = TrainingSettings(rounds=6, batch_size=128, learning_rate=0.1, augment=False)
TRAINED_ON = 20_000
"""Images of the training file that are used: a dozen models are trained a seed, on two cores."""
RETRAININGS = 3
"""Models retrained without a share of a class. What one of them has on the class is one draw: a dozen models that were trained
on all of it, or nearly, have accuracies from 0.79 to 0.88 on it."""


def take(images: Images, which: Tensor | slice) -> Images:
    """The images that `which` (bool, row numbers or a slice) names."""
    return images[0][which], images[1][which]


def score(model: nn.Module, images: Images) -> float:
    """Accuracy in [0, 1]."""
    return accuracy(predict(model, images[0]), images[1])


def recipe(*others: object) -> str:
    """Short digest of what a trained model depends on beside its images, and of `others`: part of the name of what is kept."""
    parts = (SPEC.model_dump_json(), TRAINING.model_dump_json(), *map(str, others))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def trained(name: str, images: Images, home: Path, seed: int, progress: Progress) -> Path:
    """Weights of a model trained on `images`; found in `home` when an earlier run made them."""
    path, model = home / f"{name}-{seed}-{recipe(len(images[1]))}.safetensors", build_model(SPEC, seed)
    if not path.exists():
        for r in range(TRAINING.rounds):
            progress(f"seed {seed}: training '{name}', epoch {r + 1} of {TRAINING.rounds}")
            train_locally(model, *images, TRAINING, r, Generator().manual_seed(1000 * seed + r))
        save_weights(snapshot(model), path)
    return path


def load(path: Path) -> nn.Module:
    """The model whose weights `path` holds, in evaluation mode."""
    model = build_model(SPEC)
    model.load_state_dict(load_weights(path))
    return model.eval()


@dataclass(frozen=True)
class Task:
    """Something to forget of one deployed model.

    Attributes
    ----------
    original, retrained : models trained with and without it
    retrained_again : further retrained models, from other initial weights and in another order
    forget, retain : training images
    forget_test, retain_test : images that were never trained on, of the forgotten class and of the others
    """

    original: nn.Module
    retrained: nn.Module
    forget: Images
    retain: Images
    forget_test: Images
    retain_test: Images
    retrained_again: tuple[nn.Module, ...] = ()

    @classmethod
    def of_class(cls, c: int, train: Images, test: Images, home: Path, seed: int, progress: Progress) -> Self:
        """Forget class `c` as a whole."""
        forget, retain = take(train, train[1] == c), take(train, train[1] != c)
        original = load(trained("original", train, home, seed, progress))
        retrained = load(trained(f"without-class-{c}", retain, home, seed, progress))
        return cls(original, retrained, forget, retain, take(test, test[1] == c), take(test, test[1] != c))

    @classmethod
    def of_share(cls, share: float, c: int, train: Images, test: Images, home: Path, seed: int, progress: Progress) -> Self:
        """Forget a random share of the images of class `c`, each for itself."""
        rows = (train[1] == c).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=Generator().manual_seed(seed))][: round(share * len(rows))]
        forgotten = torch.zeros(len(train[1]), dtype=torch.bool)
        forgotten[rows] = True
        forget, retain = take(train, forgotten), take(train, ~forgotten)
        original = load(trained("original", train, home, seed, progress))
        name, seeds = f"without-{share:g}-of-class-{c}", [seed + 1000 * i for i in range(RETRAININGS)]
        retrained, *again = [load(trained(name, retain, home, each, progress)) for each in seeds]
        unseen = take(test, test[1] == c), take(test, test[1] != c)
        return cls(original, retrained, forget, retain, *unseen, tuple(again))

    def scores(self, model: nn.Module) -> tuple[float, float]:
        """Accuracy on unseen images of the class, and of the others."""
        return score(model, self.forget_test), score(model, self.retain_test)
