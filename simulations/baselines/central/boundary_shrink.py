"""Boundary Shrink: forget images with the label of the class next to them, found by one signed step of the size ε.

    min_θ  E_F CE(f(x; θ), ŷ),   ŷ = argmax_{c ≠ y} T(x + ε·sign ∇_x CE(T(x), y))

(Chen et al., CVPR 2023.) The original is asked in evaluation mode, once, and never answers the image's own class: in the code
published with the sign-gradient paper (arXiv 2505.21872), which repeats this method, a step that does not cross keeps it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.simulations.baselines.descent import BATCH, Descent, batches, parts, untrained
from excise.simulations.baselines.method import Images, Knob, Made, Method, Problem, Settings


def next_class(model: nn.Module, images: Images, epsilon: float) -> Tensor:
    """The most likely other class one signed step away, int64 (N,)."""
    model, found = untrained(model), []
    for x, y in parts(images):
        moved = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), y, reduction="sum"), moved)
        with torch.no_grad():
            logits = model((x + epsilon * gradient.sign()).clamp(0, 1))
        found.append(logits.scatter(1, y[:, None], -torch.inf).argmax(1))
    return torch.cat(found)


def _run(problem: Problem, settings: Settings) -> Made:
    size = int(settings["batch"])
    descent, generator = Descent(problem.original, settings["learning_rate"]), Generator().manual_seed(problem.seed)
    x, y = problem.forget
    nearest = x, next_class(problem.original, problem.forget, settings["epsilon"])
    descent.passes += 2 * len(y)
    for _ in range(int(settings["epochs"])):
        for part, label in batches(nearest, generator, size):
            descent.step(F.cross_entropy(descent(part), label))
    return descent.made()


BOUNDARY_SHRINK = Method(
    "Boundary Shrink",
    _run,
    "Chen et al., CVPR 2023",
    {
        "learning_rate": Knob(1e-5, 0.05, 1e-3, log=True),
        "epsilon": Knob(0.01, 0.5, 0.1, log=True),
        "epochs": Knob(1, 15, 5, whole=True),
        "batch": BATCH,
    },
)
