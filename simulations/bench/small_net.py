"""A net of three layers: what many sites cost is then the federation's doing, and not that of training."""

from __future__ import annotations

from torch import nn

from excise.common.models import ModelSpec

CHANNELS, POOLED = 32, 4


def small_net(spec: ModelSpec) -> nn.Module:
    """A convolution, a hidden layer, a head; weights grow with the square of `spec.width`, 260,000 of them at 1."""
    channels = max(1, round(CHANNELS * spec.width))
    features = channels * POOLED**2
    return nn.Sequential(
        nn.Conv2d(spec.channels, channels, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(POOLED),
        nn.Flatten(),
        nn.Linear(features, features),
        nn.ReLU(),
        nn.Linear(features, spec.classes),
    )
