"""Does what was forgotten come back when the revised model is trained on?

One pass over retain images alone, as a recovery round (a_k = 0) that sites count like any other of the request; ordinary
training they do not allow. The model that results is measured and thrown away.

Such a pass moves the accuracy on whole classes, up or down, in any model (docs/results/engine.md). What comes back of the
forget set is what it gains *beside* unseen images of the same classes, and what the membership test gains. Of a forgotten
class there are no unseen images left; there, and everywhere, the retrained model shows what is ordinary, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from excise.common import messages as m
from excise.common.settings import CompositionSettings, LocalSettings, TargetSettings, UnlearningSettings
from excise.common.weights import Weights
from excise.server.federation import Federation
from excise.server.record import Phase
from excise.server.scores import Audit
from excise.server.weighting import retain_weights

SCORES = ("forget_accuracy", "matched_forget_accuracy", "matched_held_out_accuracy", "retain_accuracy", "membership_auc")


def resurfacing(federation: Federation, name: str, start: Weights, teacher_digest: str, before: Audit) -> dict[str, Any]:
    """What one pass over retain images brings back in the model `start`; measured once, also in a run that was interrupted.

    Parameters
    ----------
    name : of the model, for its checkpoint
    teacher_digest : of the deployed model, which the sites hold
    before : audit of `start`

    Returns
    -------
    ``before`` and ``after``: pooled scores; ``forget_accuracy`` and ``membership_auc``: by how much they rise;
    ``beside_unseen``: how much more than on unseen images of the same classes; ``cost``. NaN where it was not measured.

    Raises
    ------
    QuorumError : too few sites answered
    """
    folder, checkpoint = federation.folder, f"resurfaced-{name}"
    phase = folder.load_phase(checkpoint) or Phase(start)
    if phase.rounds == 0:
        _train(federation, checkpoint, phase, teacher_digest)
        phase.rounds = 1
        folder.save_phase(checkpoint, phase)
    if not phase.history:
        after = federation.audit({name: phase.weights}, payer=phase)[name]
        scores = {key: [_told(audit.pooled[key]) for audit in (before, after)] for key in SCORES}
        phase = Phase({}, 1, [scores], phase.cost)  # the model itself is of no more use, and may hold what was forgotten
        folder.save_phase(checkpoint, phase)
    (scores,) = phase.history
    told = {key: [math.nan if value is None else value for value in pair] for key, pair in scores.items()}
    rise = {key: after - before for key, (before, after) in told.items()}
    return {
        "before": {key: before for key, (before, _) in told.items()},
        "after": {key: after for key, (_, after) in told.items()},
        "forget_accuracy": rise["forget_accuracy"],
        "beside_unseen": rise["matched_forget_accuracy"] - rise["matched_held_out_accuracy"],
        "membership_auc": rise["membership_auc"],
        "cost": phase.cost,
    }


def _train(federation: Federation, name: str, phase: Phase, teacher_digest: str) -> None:
    """One round on retain images alone: at each site a pass over them, as far as its steps go."""
    plan, base = federation.plan, phase.weights
    retain = {site: status.retain for site, status in federation.status.items()}

    def question(site: str) -> m.Question:
        return m.UnlearnInstruction(
            model=plan.model,
            weights=base,
            teacher_digest=teacher_digest,
            request=plan.request,
            settings=_settings(federation, retain[site]),
            a_k=0.0,
            reference={},
            trained={},
            round_index=0,
            seed=federation.seed("resurfacing", site),  # the same for every model: they differ in their weights alone
        )

    federation.train(name, phase, retain_weights(retain), question, CompositionSettings())


def _settings(federation: Federation, images: int) -> UnlearningSettings:
    wanted = federation.plan.verification
    local = LocalSettings(
        rounds=1,
        steps=min(wanted.steps, math.ceil(images / wanted.batch)),
        retain_batch=wanted.batch,
        learning_rate=wanted.learning_rate,
        schedule="constant",
        batch_norm="live",
    )
    return UnlearningSettings(target=TargetSettings(kind="nearest"), local=local)


def _told(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def lines(found: Mapping[str, Any]) -> dict[str, float]:
    """The three numbers that are read, rounded, for an event."""
    return {key: round(found[key], 4) for key in ("forget_accuracy", "beside_unseen", "membership_auc")}
