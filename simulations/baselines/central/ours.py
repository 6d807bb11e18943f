"""Ours, with each kind of target: the preset for what is forgotten, and as many knobs as the others have.

    min_θ  ψ·E_F CE(S(x), q(x)) + (1 − ψ)·E_R CE(S(x), y),   q read off the path of a boundary search

`client/unlearning/central.py` itself; nothing is copied. The search goes with the target: calibrated ones need the path beyond
the boundary, and every forget image. `topk` keeps two classes: one would be `nearest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from excise.client.unlearning import unlearn
from excise.common.errors import ConfigError
from excise.common.settings import PRESETS, UnlearningSettings
from excise.simulations.baselines.method import Aim, Knob, Made, Method, Problem, Settings

Kind = Literal["nearest", "soft", "topk", "calibrated"]
OF: dict[Aim, UnlearningSettings] = {aim: PRESETS[aim] for aim in get_args(Aim)}
KNOBS = {
    "learning_rate": Knob(
        0.01,
        0.1,
        OF["samples"].local.learning_rate,
        log=True,
        of={"classes": Knob(0.03, 0.1, 0.04, log=True), "labels": Knob(0.03, 0.3, 0.15, log=True)},
    ),
    "psi": Knob(
        0.05,
        0.5,
        OF["samples"].psi,
        log=True,
        of={"classes": Knob(0.1, 0.5, OF["classes"].psi, log=True), "labels": Knob(0.01, 0.2, 0.05, log=True)},
    ),
    "retain_batch": Knob(32, 160, 48, log=True, whole=True, of={"classes": 96, "labels": 100}),
}
"""The first trial is what excise does when it is asked for nothing else, but for what does on tasks as small as these: of
samples and classes smaller retain batches (docs/adr/0026-small-retain-batches.md), a first round that steps away
(docs/adr/0027-a-step-away.md), and of classes and wrong labels few large steps, of these from a few of each class
(docs/adr/0032-few-large-steps-for-all.md)."""
NEGATION: Mapping[Aim, float] = {"samples": 4.0, "classes": 0.0, "labels": 3.0}
"""How far ours steps away first, s: from a whole class not at all. It would come back in an epoch on retain images
(docs/adr/0028-settings-of-rivals.md)."""
FORGET_BATCH: Mapping[Aim, int] = {aim: preset.local.forget_batch for aim, preset in OF.items()} | {"labels": 4}
FORGET_SAMPLE: Mapping[Aim, int | None] = {aim: preset.forget_sample for aim, preset in OF.items()} | {"labels": 6}
ROUNDS: Mapping[Aim, int] = {aim: preset.local.rounds for aim, preset in OF.items()} | {"labels": 8}
STEPS = {"classes": 12, "labels": 7}
"""Both with the first trial's batches. Larger ones go with fewer rounds of samples (docs/adr/0030-few-large-steps.md), and
fewer steps of a round else (docs/adr/0032-few-large-steps-for-all.md), for the same price. Of all this only the knobs are part
of a search's name: who changes anything else removes ours' trials and records."""


def settings_of(aim: Aim, settings: Settings) -> UnlearningSettings:
    """The preset for what is forgotten, with the knobs' values."""
    preset, retain_batch = OF[aim], int(settings["retain_batch"])
    shorter = (KNOBS["retain_batch"].at(aim).default + FORGET_BATCH[aim]) / (retain_batch + FORGET_BATCH[aim])
    local = {"learning_rate": settings["learning_rate"], "retain_batch": retain_batch, "forget_batch": FORGET_BATCH[aim]}
    if aim == "samples":
        local["rounds"] = round(ROUNDS[aim] * shorter)
    else:
        local["rounds"], local["steps"] = ROUNDS[aim], round(STEPS[aim] * shorter)
    chosen = {"psi": settings["psi"], "negation": NEGATION[aim], "forget_sample": FORGET_SAMPLE[aim]}
    return preset.model_copy(update={**chosen, "local": preset.local.model_copy(update=local)})


def _of(kind: Kind) -> Method:
    def run(problem: Problem, settings: Settings) -> Made:
        if kind == "calibrated" and not len(problem.unseen[1]):
            raise ConfigError("calibrated targets need images that nothing was trained on; there are none")
        asked = settings_of(problem.aim, settings)
        chosen = {
            "target": asked.target.model_copy(update={"kind": kind, "k": 2}),
            "search": OF["samples" if kind == "calibrated" else "classes"].search,
            "forget_sample": None if kind == "calibrated" else asked.forget_sample,
        }
        made = unlearn(
            problem.original,
            problem.forget,
            problem.retain,
            problem.unseen,
            asked.model_copy(update=chosen),
            problem.seed,
            forgotten=problem.forget[1].unique().tolist() if problem.whole_class else (),
        )
        return Made(made.model, made.passes)

    return Method(f"excise, {kind}", run, "this project", KNOBS)


OURS = tuple(_of(kind) for kind in get_args(Kind))
