"""SSD, selective synaptic dampening: weights that matter much more for forget images than for all are made small.

    θ ← min(λ·I_D / I_F, 1)·θ   wherever   I_F > α·I_D,      I = diagonal of the empirical Fisher information

(Foster et al., AAAI 2024.) No training. The public code squares the mean gradient of whole batches, which is no Fisher
information: it shrinks as the batch grows. Here images are taken one by one, as the paper writes it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.simulations.baselines.method import Images, Knob, Made, Method, Problem, Settings

MOST = 2000
"""Most images, evenly spread, that an importance is measured on: one by one they are slow."""


def importance(model: nn.Module, images: Images) -> tuple[list[Tensor], int]:
    """Mean squared gradient of the loss of each image, by parameter, and how many images that took."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    parameters = list(model.parameters())
    found = [torch.zeros_like(parameter) for parameter in parameters]
    x, y = images
    rows = torch.arange(min(MOST, len(y))) * len(y) // min(MOST, len(y))
    for row in rows.split(1):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[row]), y[row]), parameters)
        for one, gradient in zip(found, gradients, strict=True):
            one.add_(gradient**2 / len(rows))
    return found, len(rows)


def _run(problem: Problem, settings: Settings) -> Made:
    model = copy.deepcopy(problem.original)
    of_forget, forgets = importance(model, problem.forget)
    every = torch.cat([problem.forget[0], problem.retain[0]]), torch.cat([problem.forget[1], problem.retain[1]])
    of_all, alls = importance(model, every)
    with torch.no_grad():
        for parameter, f, d in zip(model.parameters(), of_forget, of_all, strict=True):
            factor = (settings["lambda"] * d / f.clamp_min(1e-30)).clamp_max(1.0)
            parameter.copy_(torch.where(f > settings["alpha"] * d, factor * parameter, parameter))
    return Made(model.eval(), forgets + alls)


SSD = Method(
    "SSD",
    _run,
    "Foster et al., AAAI 2024",
    {"alpha": Knob(1.0, 100.0, 10.0, log=True), "lambda": Knob(0.1, 5.0, 1.0, log=True)},
)
