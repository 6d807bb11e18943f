"""NegGrad+: down the retain images' loss and up the forget images' at once (Kurmanji et al., NeurIPS 2023).

    min_θ  α·E_R CE(f(x; θ), y) − (1 − α)·E_F CE(f(x; θ), y)

As in the paper an epoch goes over the retain set, and the forget set is gone through as often as that takes. The two batches
go through the model one after the other, so that batch norm never mixes them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Generator

from excise.simulations.baselines.descent import BATCH, Descent, batches, endless
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings


def _run(problem: Problem, settings: Settings) -> Made:
    size = int(settings["batch"])
    descent, generator = Descent(problem.original, settings["learning_rate"]), Generator().manual_seed(problem.seed)
    forgets, alpha = endless(problem.forget, generator, size), settings["alpha"]
    for _ in range(int(settings["epochs"])):
        for (x_r, y_r), (x_f, y_f) in zip(batches(problem.retain, generator, size), forgets, strict=False):
            kept, gone = F.cross_entropy(descent(x_r), y_r), F.cross_entropy(descent(x_f), y_f)
            descent.step(alpha * kept - (1 - alpha) * gone)
    return descent.made()


NEG_GRAD = Method(
    "NegGrad+",
    _run,
    "Kurmanji et al., NeurIPS 2023",
    {
        "learning_rate": Knob(1e-4, 0.05, 5e-3, log=True),
        "alpha": Knob(0.8, 0.9999, 0.95),
        "epochs": Knob(1, 5, 1, whole=True),
        "batch": BATCH,
    },
)
