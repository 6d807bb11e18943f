"""FedOSD: steps that unlearn go in no direction in which a keeping site's loss would change; recovery does not go back.

    d = g_u − its projection on span{g_k},  as long as g_u,       θ ← θ − η·d
    g_u = mean of ∇ E_F[ −log(1 − p_y / 2) ] of the forgetting sites,    g_k = ∇ L_k^r of each keeping site

(Pan et al., AAAI 2025.) Unlike the negated cross-entropy that loss has a least value. Afterwards sites recover, and each one's
update loses its component along θ − θ0, the way from the deployed model, and keeps its length.

As in the public code gradients are of all of a site's images, and recovery weighs sites alike. Its sites either forget or
keep; here one that does both gives both gradients. Where the g_k depend on each other the projection is on what they span.
Gradients are taken in evaluation mode, so that batch norm's statistics stay; in recovery they are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.common.weights import Weights, difference, snapshot
from excise.simulations.baselines.descent import BATCH, parts
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import RATE, Federation, flat, mean, shaped
from excise.simulations.baselines.federated.traffic import size_of
from excise.simulations.baselines.method import Images, Knob, Settings


def unlearning_loss(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """−log(1 − p_y / 2), sum: 0 where the true class has no probability, log 2 where it has all."""
    p_N = logits_NC.softmax(1).gather(1, y_N[:, None])[:, 0]
    return -torch.log1p(-p_N / 2).sum()


def retain_loss(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """Cross-entropy, sum."""
    return F.cross_entropy(logits_NC, y_N, reduction="sum")


def gradient(model: nn.Module, images: Images, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Gradient of the mean loss over all images, as one vector; `loss` gives sums."""
    parameters = list(model.parameters())
    total = torch.zeros(sum(parameter.numel() for parameter in parameters))
    for x, y in parts(images):
        total += torch.cat([one.flatten() for one in torch.autograd.grad(loss(model(x), y), parameters)])
    return total / len(images[1])


def orthogonal(vector: Tensor, others: Sequence[Tensor]) -> Tensor:
    """What is left of a vector without its part in the space of others, at its full length; nothing where nothing is left."""
    units = [other.double() / other.double().norm().clamp_min(1e-30) for other in others]
    u, sizes, _ = torch.linalg.svd(torch.stack(units, dim=1), full_matrices=False)
    basis = u[:, sizes > 1e-6]  # float32 gradients that depend on each other do so up to rounding
    left: Tensor = vector.double() - basis @ (basis.T @ vector.double())
    if float(left.norm()) <= 1e-6 * float(vector.norm()):  # what rounding left has no direction
        return torch.zeros_like(vector)
    longer = float(vector.norm()) / float(left.norm())
    return (left * longer).to(vector.dtype)


def direction(federation: Federation) -> Tensor:
    """d at the global model as it is."""
    model, problem = federation.model, federation.problem
    wanted = [gradient(model, problem.sites[name].forget, unlearning_loss) for name in problem.forgetting]
    kept = [gradient(model, problem.sites[name].retain, retain_loss) for name in problem.keeping]
    federation.passes += sum(problem.forget.values()) + sum(problem.retain.values())
    one = size_of(dict(model.named_parameters()))
    for name in problem.sites:
        if gradients := (name in problem.forgetting) + (name in problem.keeping):
            federation.traffic.add(name, down=size_of(model.state_dict()), up=gradients * one)
    return orthogonal(torch.stack(wanted).mean(0), kept)


def not_back(update: Weights, away: Tensor) -> Weights:
    """`update` without its component along `away`, as long as it was."""
    return shaped(orthogonal(flat(update), [away]), update) if float(away.norm()) else update


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    federation, deployed = Federation(problem, problem.original, settings["batch"]), snapshot(problem.original)
    for _ in range(int(settings["rounds"])):
        step = -settings["learning_rate"] * direction(federation)
        federation.add(shaped(step, dict(federation.model.named_parameters())))
    for _ in range(int(settings["recovery"])):
        away = flat(difference(snapshot(federation.model), deployed))
        trained = {name: federation.train(name, problem.sites[name].retain, RATE) for name in problem.keeping}
        updates = {name: not_back(update, away) for name, update in trained.items()}
        federation.add(mean(updates, dict.fromkeys(updates, 1)))
    return federation.made()


FED_OSD = FederatedMethod(
    "FedOSD",
    _run,
    "Pan et al., AAAI 2025",
    {
        "learning_rate": Knob(1e-3, 5.0, 0.2, log=True),
        "rounds": Knob(1, 20, 8, whole=True),
        "recovery": Knob(0, 8, 2, whole=True),
        "batch": BATCH,
    },
)
