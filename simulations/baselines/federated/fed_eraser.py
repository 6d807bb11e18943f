"""FedEraser: the rounds of training are gone through again, each with the length of its stored updates and a new direction.

    θ ← θ + Σ_k w_k·‖U_k‖·Ũ_k / ‖Ũ_k‖,     U_k as stored in that round, Ũ_k from a short training on retain images now

from the initial model (Liu et al., IWQoS 2021), tensor by tensor; every `interval`-th round is gone through. In the first of
them the initial model knows nothing yet, so that what sites without forget images sent then is taken as it is.

The paper erases whole clients; here a site that keeps some of its images takes part with those, and of what it sent only the
length is used, from the first round on. The public code gives the length to the mean of the sites' updates, and measures it
from the global model after the round, not before it; here each update has its own, as the paper writes it.
"""

from __future__ import annotations

from excise.common.weights import Weights
from excise.simulations.baselines.descent import BATCH
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import Federation, mean
from excise.simulations.baselines.method import Knob, Settings


def with_length_of(stored: Weights, direction: Weights) -> Weights:
    """`direction`, as long as `stored` is, tensor by tensor; nothing where it does not point anywhere."""
    return {
        name: value * (stored[name].norm() / value.norm() if value.norm() > 0 else 0.0) for name, value in direction.items()
    }


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    federation = Federation(problem, problem.initial, settings["batch"])
    for number, stored in enumerate(problem.history[:: int(settings["interval"])]):
        updates = {}
        for name in (name for name in problem.keeping if name in stored):
            if number == 0 and not problem.forget[name]:
                updates[name] = stored[name]
                continue
            now = federation.train(name, problem.sites[name].retain, settings["learning_rate"])
            updates[name] = with_length_of(stored[name], now)
        if updates:
            federation.add(mean(updates, problem.retain))
    return federation.made()


FED_ERASER = FederatedMethod(
    "FedEraser",
    _run,
    "Liu et al., IWQoS 2021",
    {"interval": Knob(1, 5, 2, whole=True), "learning_rate": Knob(1e-3, 0.2, 0.05, log=True), "batch": BATCH},
    needs_history=True,
)
