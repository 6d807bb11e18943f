"""Random labels: the forget images with labels drawn among the other classes, beside the retain images with their own.

    min_θ  E_{R+F} CE(f(x; θ), ŷ),   ŷ = y on R, uniform on {c ≠ y} on F

(Golatkar et al., CVPR 2020; Graves et al., AAAI 2021.) Labels are drawn anew in each epoch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from excise.simulations.baselines.descent import BATCH, Descent, batches, classes
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings


def other_labels(y: Tensor, among: int, generator: Generator) -> Tensor:
    """A label for each image, drawn evenly among those of `among` classes that it does not have."""
    return (y + torch.randint(1, among, y.shape, generator=generator)) % among


def _run(problem: Problem, settings: Settings) -> Made:
    size = int(settings["batch"])
    descent, generator = Descent(problem.original, settings["learning_rate"]), Generator().manual_seed(problem.seed)
    (x_f, y_f), (x_r, y_r) = problem.forget, problem.retain
    for _ in range(int(settings["epochs"])):
        mixed = torch.cat([x_f, x_r]), torch.cat([other_labels(y_f, classes(descent.model), generator), y_r])
        for x, y in batches(mixed, generator, size):
            descent.step(F.cross_entropy(descent(x), y))
    return descent.made()


RANDOM_LABELS = Method(
    "random labels",
    _run,
    "Golatkar et al., CVPR 2020; Graves et al., AAAI 2021",
    {"learning_rate": Knob(1e-4, 0.1, 0.01, log=True), "epochs": Knob(1, 5, 1, whole=True), "batch": BATCH},
)
