"""CF-k, catastrophic forgetting of the last k layers: they alone are trained on, with the retain images.

    min over the last k layers  E_R CE(f(x; θ), y),   from the original's θ

(Goel et al., arXiv 2201.06640.) Batch norm's running statistics of the frozen layers stay as they were: they belong to what
the original has learned as much as its weights do.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Generator, nn

from excise.simulations.baselines.descent import BATCH, Descent, batches, last_layers, layers
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings


def train_last(descent: Descent, problem: Problem, settings: Settings) -> Made:
    """Train on with retain images, the last ``layers`` in training mode and all before them in evaluation mode."""
    generator, k = Generator().manual_seed(problem.seed), int(settings["layers"])
    descent.model.eval()
    for layer in layers(descent.model)[-k:]:
        for module in layer:
            module.train()
    for _ in range(int(settings["epochs"])):
        for x, y in batches(problem.retain, generator, int(settings["batch"])):
            descent.step(F.cross_entropy(descent(x), y))
    return descent.made()


def _run(problem: Problem, settings: Settings) -> Made:
    k = int(settings["layers"])

    def choose(model: nn.Module) -> list[nn.Parameter]:
        return last_layers(model, k)

    descent = Descent(problem.original, settings["learning_rate"], choose)
    return train_last(descent, problem, settings)


CF_K = Method(
    "CF-k",
    _run,
    "Goel et al., arXiv 2201.06640",
    {
        "learning_rate": Knob(1e-3, 0.2, 0.05, log=True),
        "layers": Knob(1, 6, 3, whole=True),
        "epochs": Knob(1, 8, 3, whole=True),
        "batch": BATCH,
    },
)
