"""Ordinary federated averaging: how the deployed model and the retrained reference of a simulation are made."""

from __future__ import annotations

from pathlib import Path

from excise.common import messages as m
from excise.common.models import build_model
from excise.common.request import ForgetRequest
from excise.common.settings import CompositionSettings
from excise.common.weights import Weights, load_weights, snapshot
from excise.server.federation import Federation, Progress
from excise.server.record import Phase
from excise.server.weighting import retain_weights


def fit(federation: Federation, name: str, without: ForgetRequest | None, given: Path | None, progress: Progress) -> Phase:
    """Train from scratch and return the phase `name`; or take the weights that are `given`, at no cost.

    Parameters
    ----------
    without : train without the images that match
    """
    plan, folder = federation.plan, federation.folder
    if given is not None:
        return Phase(load_weights(given))
    phase = folder.load_phase(name) or Phase(snapshot(build_model(plan.model, plan.seed)))
    while phase.rounds < plan.training.rounds:
        weights = retain_weights({site: s.retain if without else s.train for site, s in federation.status.items()})
        r = phase.rounds
        progress(name, r, plan.training.rounds, "")
        base = phase.weights

        def question(site: str, r: int = r, base: Weights = base) -> m.Question:
            return m.FitInstruction(
                model=plan.model,
                weights=base,
                training=plan.training,
                round_index=r,
                seed=federation.seed(
                    "fit", r, site
                ),  # in one run the same for original and retrained: they differ in data alone
                without=without,
            )

        mean = CompositionSettings()  # whatever rule unlearning composes by
        entry = federation.train(name, phase, weights, question, mean)
        phase.history.append({"round": r + 1, "loss": entry["metrics"].get("loss")})
        phase.rounds += 1
        folder.save_phase(name, phase)
    progress(name, plan.training.rounds, plan.training.rounds, "done")
    return phase
