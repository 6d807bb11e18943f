"""Augmenting a batch of 64 images of 32 × 32 pixels: ours on the batch, MONAI's transforms image by image (docs/adr/0002).

MONAI is no dependency: `.venv/bin/pip install monai` first. One thread; medians of 21 repetitions, taken in turn.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from monai.transforms import Compose, RandAdjustContrast, RandAffine, RandFlip  # type: ignore[import-not-found, unused-ignore]

from excise.client.augmentation import GAMMA, SCALE, SHIFT, TURN, augment
from excise.common.models import ModelSpec, build_model

REPETITIONS = 21


def main() -> None:
    """Print milliseconds a batch for both, and for the training step that they feed."""
    torch.set_num_threads(1)
    x = torch.rand(64, 1, 32, 32)
    y_N = torch.arange(64) % 2
    generator = torch.Generator().manual_seed(0)
    theirs = Compose(
        [
            RandFlip(prob=0.5, spatial_axis=1),
            RandAffine(
                prob=1.0, rotate_range=TURN, scale_range=SCALE, translate_range=SHIFT * x.shape[-1], padding_mode="zeros"
            ),
            RandAdjustContrast(prob=1.0, gamma=(math.exp(-GAMMA), math.exp(GAMMA))),
        ]
    )
    model = build_model(ModelSpec(width=0.1667))

    def step() -> None:
        torch.nn.functional.cross_entropy(model(x), y_N).backward()

    tasks: dict[str, Callable[[], object]] = {
        "ours, the batch at once": lambda: augment(x, generator),
        "MONAI, image by image": lambda: torch.stack([theirs(image) for image in x]),
        "forward and backward": step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repetition in range(REPETITIONS + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if repetition:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    for name, values in seconds.items():
        print(f"{name}: {1e3 * statistics.median(values):.2f} ms")


if __name__ == "__main__":
    main()
