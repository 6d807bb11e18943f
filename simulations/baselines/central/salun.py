"""SalUn: random labels, but only those weights change that the forget images' loss is most sensitive to.

    min over θ_m  E_{R+F} CE(f(x; θ), ŷ),   ŷ as in `random_labels.py`,   m = | ∇_θ E_F CE | among the largest share

(Fan et al., ICLR 2024.) The mask comes from the original in evaluation mode, once. Batch norm's running statistics are no
weights and are not masked.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.simulations.baselines.central.random_labels import other_labels
from excise.simulations.baselines.descent import BATCH, Descent, batches, classes, parts
from excise.simulations.baselines.method import Images, Knob, Made, Method, Problem, Settings


def saliency(model: nn.Module, images: Images, share: float) -> list[Tensor]:
    """Which weights count: that `share` of them with the largest gradient of the loss, bool, a tensor for each parameter."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for x, y in parts(images):
        loss = F.cross_entropy(model(x), y, reduction="sum")
        for one, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            one.add_(gradient)
    every = torch.cat([one.abs().flatten() for one in total])
    least = every.kthvalue(max(1, len(every) - round(share * len(every)))).values
    return [one.abs() > least for one in total]


def _run(problem: Problem, settings: Settings) -> Made:
    size = int(settings["batch"])
    descent, generator = Descent(problem.original, settings["learning_rate"]), Generator().manual_seed(problem.seed)
    (x_f, y_f), (x_r, y_r) = problem.forget, problem.retain
    masks = saliency(problem.original, problem.forget, settings["share"])
    for parameter, mask in zip(descent.model.parameters(), masks, strict=True):
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
    descent.passes += len(y_f)
    for _ in range(int(settings["epochs"])):
        mixed = torch.cat([x_f, x_r]), torch.cat([other_labels(y_f, classes(descent.model), generator), y_r])
        for x, y in batches(mixed, generator, size):
            descent.step(F.cross_entropy(descent(x), y))
    return descent.made()


SALUN = Method(
    "SalUn",
    _run,
    "Fan et al., ICLR 2024",
    {
        "learning_rate": Knob(1e-4, 0.1, 0.01, log=True),
        "share": Knob(0.1, 0.9, 0.5),
        "epochs": Knob(1, 5, 1, whole=True),
        "batch": BATCH,
    },
)
