"""Looking at a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MOST_IMAGES, MOST_NUMBERS = 512, 1 << 20
"""In one forward pass: large enough to be fast. A net's largest activation has some sixty numbers for each of the input."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without weight gradients, for the block; modes and flags are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    model.requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def images_at_once(x: Tensor) -> int:
    """How many images of the size of those of `x` go through a model in one pass; at least one."""
    return max(1, min(MOST_IMAGES, MOST_NUMBERS // max(x[0].numel(), 1) if len(x) else 1))


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of every image in evaluation mode, float32 (N, C)."""
    with frozen(model), torch.no_grad():
        return torch.cat([model(batch).float() for batch in x.split(images_at_once(x))])
