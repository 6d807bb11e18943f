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
from excise.common.settings import PRESETS, LocalSettings, UnlearningSettings
from excise.simulations.baselines.method import Aim, Knob, Made, Method, Problem, Settings

Kind = Literal["nearest", "soft", "topk", "calibrated"]
OF: Mapping[Aim, UnlearningSettings] = {aim: PRESETS[aim] for aim in get_args(Aim)}
SAMPLES, OF_CLASS = OF["samples"], OF["classes"]
KNOBS = {
    "learning_rate": Knob(
        0.01, 0.1, SAMPLES.local.learning_rate, log=True, of={"classes": 0.02, "labels": OF["labels"].local.learning_rate}
    ),
    "negation": Knob(0.0, 8.0, 4.0, of={"labels": 3.0}),
    "retain_batch": Knob(32, 128, 48, log=True, whole=True, of={"classes": 40}),
}
"""The first trial is what excise does when it is asked for nothing else, but for what does on tasks as small as these: smaller
retain batches (docs/adr/0026-small-retain-batches.md), and a first round that steps away (docs/adr/0027-a-step-away.md)."""


def negation(aim: Aim, settings: Settings) -> float:
    """How far ours steps away first, s: from a whole class not at all.

    It would come back in an epoch on retain images (docs/adr/0028-settings-of-rivals.md).
    """
    return 0.0 if aim == "classes" else settings["negation"]


def local_settings(preset: UnlearningSettings, settings: Settings) -> LocalSettings:
    """The steps of a preset with the knobs' values."""
    return preset.local.model_copy(
        update={"learning_rate": settings["learning_rate"], "retain_batch": int(settings["retain_batch"])}
    )


def _of(kind: Kind) -> Method:
    def run(problem: Problem, settings: Settings) -> Made:
        if kind == "calibrated" and not len(problem.unseen[1]):
            raise ConfigError("calibrated targets need images that nothing was trained on; there are none")
        preset = OF[problem.aim]
        target = preset.target.model_copy(update={"kind": kind, "k": 2})
        chosen = {
            "negation": negation(problem.aim, settings),
            "target": target,
            "search": (SAMPLES if kind == "calibrated" else OF_CLASS).search,
            "forget_sample": None if kind == "calibrated" else preset.forget_sample,
            "local": local_settings(preset, settings),
        }
        made = unlearn(
            problem.original,
            problem.forget,
            problem.retain,
            problem.unseen,
            preset.model_copy(update=chosen),
            problem.seed,
            forgotten=problem.forget[1].unique().tolist() if problem.whole_class else (),
        )
        return Made(made.model, made.passes)

    return Method(f"excise, {kind}", run, "this project", KNOBS)


OURS = tuple(_of(kind) for kind in get_args(Kind))
