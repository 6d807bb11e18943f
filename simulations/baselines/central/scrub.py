"""SCRUB: the student leaves its teacher on forget images and stays with it on retain images, in turn.

    max_θ E_F KL(T ‖ S)   and   min_θ E_R [ α·KL(T ‖ S) + γ·CE(S, y) ]

(Kurmanji et al., NeurIPS 2023.) Epochs that drive the student away from the teacher come first, each followed by one that
brings it back; then only those. The teacher is a model of its own: in the code published with the sign-gradient paper (arXiv
2505.21872) it is the student itself, and the distance is 0 whatever the steps do.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Generator, Tensor

from excise.simulations.baselines.descent import BATCH, Descent, batches, untrained
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings

ALPHA, GAMMA = 0.5, 0.99
"""Weights on retain images of staying with the teacher and of their cross-entropy; the paper's γ."""


def divergence(teacher_NC: Tensor, student_NC: Tensor) -> Tensor:
    """KL(teacher ‖ student) of logits, mean over images, nats."""
    return F.kl_div(student_NC.log_softmax(1), teacher_NC.log_softmax(1), reduction="batchmean", log_target=True)


def _run(problem: Problem, settings: Settings) -> Made:
    size = int(settings["batch"])
    teacher, generator = untrained(problem.original), Generator().manual_seed(problem.seed)
    descent, away = Descent(problem.original, settings["learning_rate"]), int(settings["away"])
    for epoch in range(away + int(settings["epochs"])):
        for x, y in batches(problem.forget, generator, size) if epoch < away else ():
            descent.step(-divergence(teacher(x), descent(x)))
            descent.passes += len(y)
        for x, y in batches(problem.retain, generator, size):
            logits = descent(x)
            descent.step(ALPHA * divergence(teacher(x), logits) + GAMMA * F.cross_entropy(logits, y))
            descent.passes += len(y)
    return descent.made()


SCRUB = Method(
    "SCRUB",
    _run,
    "Kurmanji et al., NeurIPS 2023",
    {
        "learning_rate": Knob(1e-4, 0.05, 5e-3, log=True),
        "away": Knob(1, 8, 3, whole=True),
        "epochs": Knob(0, 3, 1, whole=True),
        "batch": BATCH,
    },
)
