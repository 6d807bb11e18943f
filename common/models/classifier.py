"""What every model has in common: images in [0, 1], normalised by its first layer, then a backbone, then a head.

Normalisation is part of the model so that ε, λ and γ of the boundary search have one meaning, in pixel units, everywhere.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from excise.common.settings import Settings


class ModelSpec(Settings):
    """What is needed to build a model; two sides with the same spec build the same names and shapes."""

    name: str = "allcnn"
    """One of `known_models()`, or an import path ``package.module:function`` of your own (docs/researcher.md)."""
    classes: int = Field(2, ge=1)
    """Number of classes, the width of the head; of labels when `multi_label`."""
    multi_label: bool = False
    """Whether an image has any number of the labels (a sigmoid each) in place of one class (a softmax)."""
    channels: int = Field(1, ge=1)
    """Image channels: 1 grey, 3 colour."""
    size: int = Field(32, ge=16)
    """Side of the square or cubic image, pixels."""
    dims: Literal[2, 3] = 2
    """Spatial dimensions: 2 images, 3 volumes (`densenet121` and models of your own)."""
    width: float = Field(0.25, gt=0, le=4)
    """Multiple of the published channel counts (`allcnn` only)."""
    mean: float = 0.5
    """Subtracted from every pixel by the first layer."""
    std: float = Field(0.25, gt=0)
    """Divides every pixel in the first layer."""
    head: str = ""
    """Models of your own: name of the last linear layer, such as ``fc``; the last one that the module holds when left out."""

    @model_validator(mode="after")
    def _has_a_choice(self) -> Self:
        if self.classes < 2 and not self.multi_label:
            raise ValueError("a classifier needs at least two classes; for one label that images have or not, set multi_label")
        return self

    @property
    def strata(self) -> int:
        """Number of what scores are told by: the classes, or the two sides of each label (`client/unlearning/labels.py`)."""
        return 2 * self.classes if self.multi_label else self.classes


class Normalise(nn.Module):
    """``(x − mean) / std`` on images in [0, 1]."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Normalise, then backbone, then head.

    ``features(x)`` gives what the head sees, shape (N, F); ``forward(x)`` gives logits, shape (N, classes).
    """

    def __init__(self, spec: ModelSpec, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.normalise = Normalise(spec.mean, spec.std)
        self.backbone, self.head = backbone, head

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.normalise(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
