"""DELETE: on forget images the student says what the original says of the other classes. Retain images are not needed.

    min_θ  E_F KL( softmax(T(x) with the logit of y at −∞) ‖ S(x) )

(Zhou et al., CVPR 2025.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from excise.simulations.baselines.descent import BATCH, Descent, batches, untrained
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings


def without_true(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """Probabilities of the classes c ≠ y, which add up to 1; that of y is 0."""
    return logits_NC.scatter(1, y_N[:, None], -torch.inf).softmax(1)


def _run(problem: Problem, settings: Settings) -> Made:
    size = int(settings["batch"])
    teacher, generator = untrained(problem.original), Generator().manual_seed(problem.seed)
    descent = Descent(problem.original, settings["learning_rate"])
    for _ in range(int(settings["epochs"])):
        for x, y in batches(problem.forget, generator, size):
            told = without_true(teacher(x), y)
            descent.step(F.kl_div(descent(x).log_softmax(1), told, reduction="batchmean"))
            descent.passes += len(y)
    return descent.made()


DELETE = Method(
    "DELETE",
    _run,
    "Zhou et al., CVPR 2025",
    {"learning_rate": Knob(1e-5, 0.05, 1e-3, log=True), "epochs": Knob(1, 20, 5, whole=True), "batch": BATCH},
)
