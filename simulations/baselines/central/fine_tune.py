"""Fine-tuning: train on, with the retain images alone, and hope that the rest fades.

    min_θ  E_R CE(f(x; θ), y),   from the original's θ

The first baseline of nearly every paper (Warnecke et al., NDSS 2023; Golatkar et al., CVPR 2020).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Generator

from excise.simulations.baselines.descent import BATCH, Descent, batches
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings


def _run(problem: Problem, settings: Settings) -> Made:
    size = int(settings["batch"])
    descent, generator = Descent(problem.original, settings["learning_rate"]), Generator().manual_seed(problem.seed)
    for _ in range(int(settings["epochs"])):
        for x, y in batches(problem.retain, generator, size):
            descent.step(F.cross_entropy(descent(x), y))
    return descent.made()


FINE_TUNE = Method(
    "fine-tune",
    _run,
    "Warnecke et al., NDSS 2023; Golatkar et al., CVPR 2020",
    {"learning_rate": Knob(1e-3, 0.2, 0.05, log=True), "epochs": Knob(1, 5, 2, whole=True), "batch": BATCH},
)
