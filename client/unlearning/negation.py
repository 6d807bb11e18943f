"""The step away: before the joint steps, what more training on the forget images would change is subtracted, scaled.

    θ ← θ − s·(a_k/ψ)·Δ_k,      Δ_k = what a few steps of ordinary training on D_k^f change in θ

(Negated task vectors: Ilharco et al., ICLR 2023; in federated unlearning Mora et al., arXiv 2504.05822.) Composed with the
weights p_k of `server/weighting.py` it is −s·Σ_k (n_k^f/N_f)·Δ_k, wherever the forget images lie. It is what a site does with
its forget images in the first round, in place of joint steps.

Why: of most forget images the model is nearly sure, and is to end nearly as sure. So close to their targets they have hardly
any gradient, stay surer than unseen images, and a membership test tells them by that. A step away leaves all of them short of
their targets, and from there the joint steps draw them up.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from excise.client.unlearning.inference import images_at_once
from excise.client.unlearning.local import Diverged, LocalResult
from excise.client.unlearning.objective import label_loss
from excise.common.randomness import layers_seeded_by
from excise.common.settings import UnlearningSettings

STEPS, BATCH = 4, 128
"""At most, so that Δ_k is of one size for a hundred forget images and for many thousands, and the cost as well."""
RATE, MOMENTUM = 0.05, 0.9


def is_step_away(settings: UnlearningSettings, round_index: int, x: Tensor, min_count: int = 2) -> bool:
    """Whether a site with forget images `x` steps away in round `round_index`, counted from 0, in place of joint steps.

    Not in the only round, which would leave the student there. Not over fewer than `min_count` images: they could be read off
    an update that comes from them alone; and one image has no statistics of batch norm.
    """
    return (
        settings.negation > 0
        and round_index == 0
        and settings.local.rounds > 1
        and images_of_step_away(x) >= max(min_count, 2)
    )


def images_of_step_away(x: Tensor) -> int:
    """How many of the forget images `x` the step away is taken from."""
    return min(len(x), STEPS * _most_in_batch(x))


def _most_in_batch(x: Tensor) -> int:
    return max(2, min(BATCH, images_at_once(x)))


def step_away(student: nn.Module, x: Tensor, y_N: Tensor, scale: float, clip_norm: float, generator: Generator) -> LocalResult:
    """Subtract `scale` times what ordinary training on the forget images changes; `student` is changed in place.

    Batches are normalised by their own statistics, as in training; the running ones stay as they came: batches of forget
    images alone would poison them.

    Parameters
    ----------
    student : the model as it came from the coordinator
    x : forget images, at least two, in [0, 1], (N, channels, *spatial)
    y_N : their classes, int64 (N,), or labels, float (N, L)
    scale : s·a_k/ψ
    clip_norm : gradient norm above which a step is scaled down
    generator : source of the mini-batches

    Raises
    ------
    Diverged : the gradient was not finite; `student` is as it came
    """
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    before = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
    optimiser = torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM)
    rows = torch.randperm(len(x), generator=generator)[: images_of_step_away(x)].to(x.device)
    batches = rows.tensor_split(math.ceil(len(rows) / _most_in_batch(x)))
    norms = torch.zeros(len(batches), device=x.device)
    student.train()
    with layers_seeded_by(generator, x.device):
        for step, batch in enumerate(batches):
            optimiser.zero_grad(set_to_none=True)
            label_loss(student(x[batch]), y_N[batch]).backward()
            norms[step] = nn.utils.clip_grad_norm_(parameters, clip_norm)
            optimiser.step()
    trained = [parameter.detach().clone() for parameter in parameters]
    student.load_state_dict(before)
    student.eval()
    if not bool(norms.isfinite().all()):
        raise Diverged("the gradient of the forget images' loss was not finite; look for faults in the images")
    with torch.no_grad():
        for parameter, further in zip(parameters, trained, strict=True):
            parameter.sub_(further - parameter, alpha=scale)
    return LocalResult(math.nan, math.nan, float(norms.mean()), 0.0, len(rows))
