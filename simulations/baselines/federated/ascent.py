"""Projected gradient ascent: a forgetting site climbs its forget images' loss, never far from the other sites' mean model.

    max_θ  L_k^f(θ)   with   ‖θ − θ_ref‖ ≤ δ,      θ_ref = (K·θ − θ_k) / (K − 1),   δ = ⅓·‖θ_random − θ_ref‖

then recovery rounds on retain images (Halimi et al., arXiv 2207.05521). θ_k is the site's model of the last round of training:
it follows from that round's stored updates. Where nobody stored them θ_ref is the global model. The paper stops climbing at an
accuracy of 0.12, a little above chance for ten classes; here at as much above chance, whatever the number of classes. It
erases one whole client; here a site forgets its forget images alone, and keeps its other images in the recovery.
"""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Generator, nn

from excise.common.weights import Weights, difference, moved, snapshot
from excise.simulations.baselines.central.bad_teacher import knows_nothing
from excise.simulations.baselines.descent import BATCH, Descent, classes, endless
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import Federation, flat, mean, shaped
from excise.simulations.baselines.method import Knob, Settings

RADIUS = 1 / 3
"""Of the ball, as a share of the distance to a random model; the paper's."""
STEPS = 40
"""Most steps up."""
STOP = 1.2
"""Accuracy on a batch of forget images, in units of chance, at which the climb ends."""


def centre(problem: FederatedProblem, name: str) -> nn.Module:
    """θ_ref: the mean of the other sites' models after the last round of training, where its updates are stored."""
    model, last = copy.deepcopy(problem.original), problem.history[-1] if problem.history else {}
    if name in last and len(last) > 1:
        everyone = mean(last, dict.fromkeys(last, 1))
        away = {key: (everyone[key] - last[name][key]) / (len(last) - 1) for key in everyone}
        model.load_state_dict(moved(model.state_dict(), away))
    return model


def projected(walked: Weights, radius: float) -> Weights:
    """`walked` where its parameters go no further than `radius`, else the point of the ball in their direction."""
    vector = flat(walked)
    length = float(vector.norm())
    return walked if length <= radius else shaped(vector * (radius / length), walked)


def climbed(problem: FederatedProblem, name: str, settings: Settings) -> Descent:
    """The climb of one site."""
    middle = centre(problem, name)
    start = snapshot(middle)
    radius = RADIUS * float(flat(difference(snapshot(knows_nothing(middle, problem.seed)), start)).norm())
    descent, generator = Descent(middle, settings["learning_rate"]), Generator().manual_seed(problem.seed)
    descent.model.eval()  # batches of forget images alone would spoil batch norm's statistics
    climbing = endless(problem.sites[name].forget, generator, int(settings["batch"]))
    for _, (x, y) in zip(range(STEPS), climbing, strict=False):
        logits = descent(x)
        if float((logits.argmax(1) == y).float().mean()) <= STOP / classes(middle):
            break
        descent.step(-F.cross_entropy(logits, y))
        walked = difference(snapshot(descent.model), start)
        descent.model.load_state_dict(moved(start, projected(walked, radius)))
    return descent


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    federation = Federation(problem, problem.original, settings["batch"])
    climbs = {name: climbed(problem, name, settings) for name in problem.forgetting}
    updates = {name: federation.update_of(name, climb) for name, climb in climbs.items()}
    federation.add(mean(updates, problem.forget))
    for _ in range(int(settings["recovery"])):
        federation.retain_round(settings["recovery_rate"])
    return federation.made()


ASCENT = FederatedMethod(
    "projected ascent",
    _run,
    "Halimi et al., arXiv 2207.05521",
    {
        "learning_rate": Knob(1e-4, 0.1, 0.01, log=True),
        "recovery_rate": Knob(1e-3, 0.2, 0.05, log=True),
        "recovery": Knob(0, 8, 2, whole=True),
        "batch": BATCH,
    },
)
