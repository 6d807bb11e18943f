"""Every setting of a run, each explained where it is declared, each checked once: when it is read.

Symbols (ε, η, λ, γ, κ, τ, ψ, μ, a_k, p_k) are those of the method; docs/method.md writes the equations out.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FEWEST_RETAINED = 2
"""Retain images of a site's step at least: with five steps a round draws on ten, which is the fewest of `PrivacySettings`."""

WHOLE_FROM = 0.25
"""Share of the sites with forget images from which on `negation` is taken whole: one of many steps away less far (ADR 33)."""


class Settings(BaseModel):
    """Immutable, keyword-only, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SearchSettings(Settings):
    """The lower level: the boundary search of `client/unlearning/boundary.py`."""

    epsilon: float = Field(0.25, gt=0, le=1)
    """ε: half side of the box around an image, pixel units of [0, 1]."""
    eta: float = Field(0.02, gt=0)
    """η: first step size, pixel units; step t is η/√(t+1)."""
    max_steps: int = Field(30, ge=1, le=1000)
    """Most steps that one image may take."""
    lam: float = Field(0.0, ge=0)
    """λ: weight of the pull back towards the image, per squared pixel unit."""
    lam_schedule: Literal["constant", "inverse", "exponential", "linear"] = "constant"
    """How λ falls with the step t: λ, λ/(t+1), λ·exp(−t/10), λ·(1 − t/max_steps)."""
    gamma: float = Field(0.0, ge=0)
    """γ: scale of the noise inside the sign, units of the per-sample gradient."""
    noise: Literal["normal", "laplace", "uniform", "cauchy"] = "normal"
    """Distribution of the noise, each of unit scale; uniform on (−1, 1)."""
    stop: Literal["crossed", "confidence", "loss", "never"] = "loss"
    """When an image leaves the search early: class changed, p_y ≤ κ, cross-entropy ≥ the largest wanted loss, or never."""
    kappa: float = Field(0.5, gt=0, lt=1)
    """κ: probability of the true class at which `stop = "confidence"` stops."""
    batch_size: int = Field(256, ge=1)
    """Images searched at once. Changes memory; with γ > 0 also which noise an image gets, never its distribution."""


class TargetSettings(Settings):
    """What the student should say on a forget image: `client/unlearning/targets.py`."""

    kind: Literal["nearest", "soft", "topk", "calibrated"] = "calibrated"
    """`nearest`, `soft` and `topk` suit classes; `calibrated` suits devices, patients, dates and samples."""
    tau: float = Field(1.0, gt=0)
    """τ: temperature of `soft` and `topk`."""
    k: int = Field(1, ge=1)
    """Classes that `topk` keeps."""
    overshoot: float = Field(1.8, ge=1, le=10)
    """`calibrated`: factor on the reference losses; a few steps carry the student only part of the way (docs/adr/0005)."""
    level: Literal["unseen", "retain"] = "unseen"
    """`calibrated`: what says how hard the forget images would be, had they not been trained on: unseen images at large, or
    unseen images as far as the forget images differ from retain images (`client/unlearning/reference.py`), for a random part
    of the training images."""
    band: float = Field(0.02, ge=0, le=1)
    """`calibrated`: how far below its mark, in mean probability of the true class, the student may fall before targets stop
    to overshoot; twice as far, they pull it back (docs/adr/0010-self-correcting-overshoot.md). 0: never."""
    looks: int = Field(64, ge=1)
    """`calibrated`: forget images that are looked at before each round, over all sites, to learn where the student stands."""
    label_shift: bool = True
    """`calibrated`: whether the reference losses become those of a model that meets the classes as often as the retain images
    hold them (`common/class_mix.py`, docs/adr/0014-label-shift.md)."""
    mask_true_class: bool = True
    """Whether `nearest` may never answer the true class. False repeats the published code."""


class LocalSettings(Settings):
    """The upper level at one site: `client/unlearning/local.py`."""

    rounds: int = Field(10, ge=1)
    """Unlearning rounds."""
    steps: int = Field(5, ge=1)
    """Local gradient steps of one round."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the forget images in one round, in place of `steps` at sites that have any; with a constant schedule."""
    forget_batch: int = Field(48, ge=1)
    """Forget images in one step, over all sites: each takes its share of them (docs/adr/0012). With `epochs`, at each site."""
    retain_batch: int = Field(96, ge=0)
    """Retain images in one step, over all sites that take part, in equal parts (docs/adr/0023); 0 trains on forget images
    alone."""
    retain_batch_at_site: int = Field(8, ge=1)
    """Retain images in one step that a site should have at least. Of more sites than `retain_batch` has so many for, those
    that hold no forget images take turns (`server/turns.py`, docs/adr/0033-sites-take-turns.md)."""
    learning_rate: float = Field(0.01, gt=0)
    """Step size of SGD at the first step."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the step size falls over all rounds, to zero or not at all."""
    momentum: float = Field(0.9, ge=0, lt=1)
    clip_norm: float = Field(5.0, gt=0)
    """Gradient norm above which a step is scaled down."""
    batch_norm: Literal["auto", "frozen", "live", "published"] = "auto"
    """`live` updates the statistics in mixed batches only; `frozen` never; `published` always, as the authors' code does.
    `auto` is `live` where a site's batches are of about the classes of its retain images, else `frozen` (docs/adr/0014)."""
    distil: float = Field(0.0, ge=0, le=1)
    """Share of distillation from the teacher in the retain loss; the rest is cross-entropy (docs/adr/0008)."""
    distil_temperature: float = Field(2.0, gt=0)
    mu: float = Field(0.0, ge=0)
    """μ: weight of ½‖θ − θ0‖², the pull towards the deployed model."""

    @model_validator(mode="after")
    def _epochs_are_constant(self) -> Self:
        if self.epochs is not None and self.schedule != "constant":
            raise ValueError("epochs needs schedule = 'constant': sites would be at different places of another schedule")
        return self


class UnlearningSettings(Settings):
    """One way to carry out a forget request."""

    psi: float = Field(0.4, gt=0, le=1)
    """ψ: weight of forgetting against retaining in F(θ). 1 forgets only, as the published code does."""
    negation: float = Field(0.0, ge=0, le=20)
    """s: how far sites step away from their forget images in the first round, in units of what a few steps of training on them
    would change (`client/unlearning/negation.py`, docs/adr/0027-a-step-away.md). Less where fewer than a quarter of the sites
    have any. 0: not at all."""
    weights: Literal["objective", "fedavg"] = "objective"
    """`objective` composes with p_k and trains with a_k, which is federated averaging on F; `fedavg` weighs by data size."""
    search: SearchSettings = SearchSettings()
    target: TargetSettings = TargetSettings()
    forget_sample: int | None = Field(None, ge=1)
    """Most forget images of each class that one site searches and trains on, drawn at random; without it all. A few hundred
    stand for a class. For requests of whole classes alone: where the images themselves are to be forgotten, none may be left
    out. Of labels, most forget images in all."""
    local: LocalSettings = LocalSettings()
    keep: Literal["last", "best"] = "last"
    """`last` runs every round and keeps the last. `best` judges rounds: it stops at the first settled one that meets the
    request's acceptance rule on reference images, and goes back from one that is clearly worse than one before
    (`server/stopping.py`). Judging costs up to half as much again (docs/adr/0006-choice-on-reference-images.md)."""
    quantiles: int = Field(64, ge=2, le=4096)
    """Points of the loss distribution that a site reports for calibration."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.psi < 1 and self.local.retain_batch == 0:
            raise ValueError("retain_batch = 0 needs psi = 1: with psi < 1 the objective has a retain term")
        if self.forget_sample is not None and self.target.kind == "calibrated":
            raise ValueError("forget_sample is for classes; with calibrated targets every forget image must be searched")
        return self

    def at_site(self, share: float, keeping: int, forgetting: float) -> Self:
        """The same for one site: its part of what the sites do together.

        Parameters
        ----------
        share : of all forget images those that it holds, in [0, 1]
        keeping : how many of the sites that take part hold retain images
        forgetting : of all sites those that hold forget images, in [0, 1]
        """
        local, target = self.local, self.target.model_copy(update={"looks": math.ceil(share * self.target.looks) or 1})
        least = min(FEWEST_RETAINED, local.retain_batch)
        part = max(math.ceil(local.retain_batch / max(keeping, 1)), least)
        local = local.model_copy(update={"retain_batch": part})
        if local.epochs is None:
            local = local.model_copy(update={"forget_batch": math.ceil(share * local.forget_batch) or 1})
        negation = self.negation * min(1.0, forgetting / WHOLE_FROM)
        return self.model_copy(update={"negation": negation, "local": local, "target": target})


class CompositionSettings(Settings):
    """How the coordinator composes updates: a rule of `server/composition` and its options.

    In TOML ``composition = "mean"``, or a table: ``composition = { rule = "ties", density = 0.2 }``.
    """

    rule: str = "mean"
    options: dict[str, float] = {}
    """Options of the rule by name; what is left out has the rule's default. Checked by `server/composition/registry.py`."""

    @model_validator(mode="before")
    @classmethod
    def _from_toml(cls, raw: object) -> object:
        if isinstance(raw, str):
            return {"rule": raw}
        if isinstance(raw, dict) and "options" not in raw:
            return {"rule": raw.get("rule", "mean"), "options": {k: v for k, v in raw.items() if k != "rule"}}
        return raw


PRESETS: dict[str, UnlearningSettings] = {
    # Devices, patients, dates, samples: as uncertain on forgotten images as on images never seen.
    "samples": UnlearningSettings(),
    # Classes: the nearest other class. Forgetting one takes a few steps on a few of its images; the rest of the steps, mostly
    # on retain images, let the other classes have what it leaves (docs/adr/0007-classes-from-a-sample.md).
    "classes": UnlearningSettings(
        psi=0.15,
        search=SearchSettings(epsilon=0.1, eta=0.1, max_steps=10, stop="crossed"),
        target=TargetSettings(kind="nearest"),
        forget_sample=256,
        local=LocalSettings(
            rounds=5,
            steps=25,
            forget_batch=16,
            retain_batch=112,
            learning_rate=0.01,
            schedule="cosine",
            batch_norm="live",
            distil=0.0,
        ),
    ),
    # Labels that are wrong: another class than the label's, the nearest. What the wrong ones spoilt is learned anew, in many
    # large steps and mostly from retain images (docs/adr/0024-wrong-labels.md).
    "labels": UnlearningSettings(
        psi=0.05,
        search=SearchSettings(epsilon=0.1, eta=0.1, max_steps=10, stop="crossed"),
        target=TargetSettings(kind="nearest"),
        local=LocalSettings(rounds=5, steps=18, forget_batch=6, retain_batch=48, retain_batch_at_site=4, learning_rate=0.05),
    ),
    # The authors' public code, faults included, so that a comparison with it stays possible.
    "published": UnlearningSettings(
        psi=1.0,
        weights="fedavg",
        search=SearchSettings(epsilon=0.1, eta=0.1, max_steps=1, stop="never"),
        target=TargetSettings(kind="nearest", mask_true_class=False),
        local=LocalSettings(
            rounds=1,
            epochs=10,
            forget_batch=32,
            retain_batch=0,
            learning_rate=1e-5,
            schedule="constant",
            batch_norm="published",
            distil=0.0,
            clip_norm=1e9,
        ),
    ),
}


class TrainingSettings(Settings):
    """Ordinary federated training: how the deployed model and the retrained reference are made."""

    rounds: int = Field(80, ge=1)
    epochs: int = Field(1, ge=1)
    """Local passes over the training images in one round."""
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(0.1, gt=0)
    """Step size of SGD at the first step; falls to zero over all rounds along a cosine."""
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    clip_norm: float = Field(5.0, gt=0)
    augment: bool = True
    """Whether each image is mirrored, turned, scaled, shifted and made brighter or darker at random; 2-D images only."""


class RoundSettings(Settings):
    """How a round deals with sites that are slow, dead or wrong: `server/rounds.py`."""

    quorum: float = Field(1.0, gt=0, le=1)
    """Share of the asked sites whose usable answer a round needs."""
    deadline: float = Field(600.0, gt=0)
    """Seconds after which a round goes on without the sites that have not answered."""
    window: int = Field(8, ge=1)
    """Messages outstanding at once; bounds the coordinator's memory."""
    watch: bool = True
    """Whether every unlearning round is scored on all images, for the curves of the report. It decides nothing, is counted
    nowhere, and on large sites takes longer than the rounds themselves."""
    norm_bound: float = Field(100.0, gt=0)
    """Largest Euclidean norm of an update that is composed."""


class PrivacySettings(Settings):
    """What may leave a site."""

    min_count: int = Field(10, ge=1)
    """Fewest images over which a site reports a number."""
