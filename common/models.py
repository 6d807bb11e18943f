"""The models that excise knows by name. Each takes images in [0, 1] and normalises them in its first layer.

Normalisation is part of the model so that ε, λ and γ of the boundary search have one meaning, in pixel units, everywhere.
Every model has an addressable `backbone` (images to features) and `head` (features to logits).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from excise.common.errors import ConfigError, did_you_mean
from excise.common.settings import Settings

Builder = Callable[["ModelSpec"], tuple[nn.Module, nn.Module]]
_BUILDERS: dict[str, Builder] = {}


class ModelSpec(Settings):
    """What is needed to build a model; two sides with the same spec build the same names and shapes."""

    name: str = "allcnn"
    """One of `known_models()`."""
    classes: int = Field(2, ge=2)
    """Number of classes, the width of the head."""
    channels: int = Field(1, ge=1)
    """Image channels: 1 grey, 3 colour."""
    size: int = Field(32, ge=16)
    """Side of the square image, pixels."""
    width: float = Field(0.25, gt=0, le=4)
    """Multiple of the published channel counts (`allcnn` only)."""
    mean: float = 0.5
    """Subtracted from every pixel by the first layer."""
    std: float = Field(0.25, gt=0)
    """Divides every pixel in the first layer."""


def model(name: str) -> Callable[[Builder], Builder]:
    """Register a builder under `name`; a name can be taken once."""

    def register(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(f"model '{name}' is registered already")
        _BUILDERS[name] = builder
        return builder

    return register


def known_models() -> tuple[str, ...]:
    """Names that `build_model` accepts."""
    return tuple(sorted(_BUILDERS))


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


def build_model(spec: ModelSpec, seed: int = 0) -> Classifier:
    """Build a freshly initialised model; the same spec and seed give the same weights, and no global state is touched.

    Raises
    ------
    ConfigError : the name is unknown
    """
    if spec.name not in _BUILDERS:
        raise ConfigError(f"unknown model '{spec.name}': {did_you_mean(spec.name, _BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, head = _BUILDERS[spec.name](spec)
        # channels_last: 1.6 times faster on the CPU (docs/adr/0002), and what tensor cores want on a GPU.
        return Classifier(spec, backbone, head).to(memory_format=torch.channels_last)


@model("allcnn")
def _allcnn(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
    """All-convolutional net (Springenberg et al., 2015, model All-CNN-C), with batch norm as in the unlearning papers."""

    def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    a, b = (max(4, round(c * spec.width)) for c in (96, 192))
    backbone = nn.Sequential(
        block(spec.channels, a, 3),
        block(a, a, 3),
        block(a, a, 3, stride=2),
        block(a, b, 3),
        block(b, b, 3),
        block(b, b, 3, stride=2),
        block(b, b, 3),
        block(b, b, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return backbone, nn.Linear(b, spec.classes)


@model("resnet18")
def _resnet18(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
    """torchvision's ResNet-18 with a first layer for small images: 3×3, stride 1, no pooling up to 64 pixels."""
    from torchvision.models import resnet18

    net = resnet18(num_classes=spec.classes)
    small = spec.size <= 64
    net.conv1 = nn.Conv2d(spec.channels, 64, 3 if small else 7, 1 if small else 2, padding=1 if small else 3, bias=False)
    if small:
        net.maxpool = nn.Identity()
    head, net.fc = net.fc, nn.Identity()
    return net, head
