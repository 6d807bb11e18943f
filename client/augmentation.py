"""Random views of training images, a whole batch at a time.

MONAI's transforms take one image at a time, which costs more than the training step of a small model
(docs/adr/0002-training-recipe.md). These are the same operations on a batch: mirror, turn, scale, shift, and gamma.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

TURN = math.radians(12)  # heads are not held straighter than this in a scanner
SCALE = 0.12
SHIFT = 0.06  # of the image's side
GAMMA = 0.3  # exponent of the intensity, natural logarithm: scanners differ about as much


def augment(x_NCHW: Tensor, generator: Generator) -> Tensor:
    """A random view of each image; float32 (N, C, H, W) in [0, 1], as given."""
    n = len(x_NCHW)

    def spread(size: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * size

    angle, scale = spread(TURN), 1 + spread(SCALE)
    mirror = (torch.rand(n, generator=generator) < 0.5).float() * 2 - 1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    turn_N22 = torch.stack([torch.stack([cos * mirror, -sin], 1), torch.stack([sin * mirror, cos], 1)], 1)
    shift_N2 = spread(2 * SHIFT, 2)  # affine_grid measures in half sides
    exponent = spread(GAMMA).exp()
    affine_N23 = torch.cat([turn_N22, shift_N2[:, :, None]], 2).to(x_NCHW.device)
    grid = F.affine_grid(affine_N23, list(x_NCHW.shape), align_corners=False)
    view = F.grid_sample(x_NCHW, grid, align_corners=False, padding_mode="zeros")
    # The root of 0 has no gradient and 0**x no use: keep a hair above it.
    return view.clamp(1e-4, 1) ** exponent.to(x_NCHW.device).view(-1, 1, 1, 1)
