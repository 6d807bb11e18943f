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
OF: Mapping[Aim, UnlearningSettings] = {aim: PRESETS[aim] for aim in get_args(Aim)}
SAMPLES, OF_CLASS = OF["samples"], OF["classes"]
KNOBS = {
    "learning_rate": Knob(
        1e-3, 0.1, SAMPLES.local.learning_rate, log=True, of={aim: of.local.learning_rate for aim, of in OF.items()}
    ),
    "psi": Knob(0.05, 0.9, SAMPLES.psi, of={aim: of.psi for aim, of in OF.items()}),
    "rounds": Knob(1, 12, SAMPLES.local.rounds, log=True, whole=True, of={aim: of.local.rounds for aim, of in OF.items()}),
}
"""The first trial is what excise does when it is asked for nothing else."""


def _of(kind: Kind) -> Method:
    def run(problem: Problem, settings: Settings) -> Made:
        if kind == "calibrated" and not len(problem.unseen[1]):
            raise ConfigError("calibrated targets need images that nothing was trained on; there are none")
        preset = OF[problem.aim]
        local = {"learning_rate": settings["learning_rate"], "rounds": int(settings["rounds"])}
        target = preset.target.model_copy(update={"kind": kind, "k": 2})
        chosen = {
            "psi": settings["psi"],
            "target": target,
            "search": (SAMPLES if kind == "calibrated" else OF_CLASS).search,
            "forget_sample": None if kind == "calibrated" else preset.forget_sample,
            "local": preset.local.model_copy(update=local),
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
