"""Bad teacher: the student learns from the original on retain images and from a model that knows nothing on forget images.

    min_θ  E_R KL(T ‖ S) + E_F KL(U ‖ S),   U with weights drawn at random

(Chundawat et al., AAAI 2023.) As in the paper a share of the retain images takes part, 30 % by default.
"""

from __future__ import annotations

import torch
from torch import Generator, nn

from excise.simulations.baselines.central.scrub import divergence
from excise.simulations.baselines.descent import BATCH, Descent, batches, begin_anew, layers, untrained
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings


def knows_nothing(original: nn.Module, seed: int) -> nn.Module:
    """A model like `original` that was never trained."""
    model = untrained(original)
    begin_anew(model, len(layers(model)), seed)
    return model


def _run(problem: Problem, settings: Settings) -> Made:
    size = int(settings["batch"])
    good, bad = untrained(problem.original), knows_nothing(problem.original, problem.seed)
    descent, generator = Descent(problem.original, settings["learning_rate"]), Generator().manual_seed(problem.seed)
    (x_f, y_f), (x_r, y_r) = problem.forget, problem.retain
    kept = torch.randperm(len(y_r), generator=generator)[: round(settings["share"] * len(y_r))]
    mixed = torch.cat([x_f, x_r[kept]]), torch.cat([torch.ones(len(y_f)), torch.zeros(len(kept))])
    for _ in range(int(settings["epochs"])):
        for x, forgotten in batches(mixed, generator, size):
            told = torch.where(forgotten[:, None] > 0, bad(x), good(x))
            descent.step(divergence(told, descent(x)))
            descent.passes += 2 * len(x)
    return descent.made()


BAD_TEACHER = Method(
    "bad teacher",
    _run,
    "Chundawat et al., AAAI 2023",
    {
        "learning_rate": Knob(1e-4, 0.1, 0.01, log=True),
        "share": Knob(0.1, 1.0, 0.3),
        "epochs": Knob(1, 4, 1, whole=True),
        "batch": BATCH,
    },
)
