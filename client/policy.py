"""What a site allows: its own settings. Whatever is left out is not allowed.

The site owns its policy. What the coordinator asks for may be less than it, never more (`permission.py` checks).
"""

from __future__ import annotations

import math
from datetime import time
from enum import StrEnum
from typing import Self

from pydantic import Field, field_validator, model_validator

from excise import __version__
from excise.common.request import RequestKind
from excise.common.settings import PrivacySettings, Settings


class Metric(StrEnum):
    """Kinds of measured numbers that may leave, each over at least `min_count` images."""

    ACCURACY = "accuracy"
    """Accuracies of audits, of each class too."""
    CALIBRATION = "calibration"
    """Expected calibration errors of audits."""
    LOSS = "loss"
    """Mean losses of audits, training and unlearning."""
    SEARCH = "search"
    """Of boundary searches: share that crossed, length of their paths, ascent by step."""
    PROGRESS = "progress"
    """Of unlearning: gradient norms, sum of step sizes, overshoot."""
    PROBE = "probe"
    """Of a linear probe, where a request asks for one: how well a model's features tell forget images from others."""


class UpdatePrivacySettings(Settings):
    """What is done to an update before it leaves (`client/privacy.py`), each part off unless told (docs/adr/0019)."""

    clip: float | None = Field(None, gt=0)
    """C: largest Euclidean norm of an update, batch-norm statistics included; a longer one is scaled down."""
    noise_multiplier: float = Field(0.0, ge=0, le=1e4)
    """z: standard deviation of the Gaussian noise on every number of an update, in units of `clip`."""
    keep_share: float = Field(1.0, gt=0, le=1)
    """Share of an update's numbers that leave, the largest ones; the others are zero."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """δ: chance with which the bound ε need not hold; what ε is told at."""
    max_epsilon: float | None = Field(None, gt=0)
    """Largest ε of all updates with noise that ever leave; a round that would exceed it is refused. Without it, no bound."""

    @model_validator(mode="after")
    def _bound_what_is_bounded(self) -> Self:
        if self.noise_multiplier and self.clip is None:
            raise ValueError("noise_multiplier needs clip: noise hides nothing in an update of any length")
        if 0 < self.noise_multiplier < 1e-6:
            raise ValueError("noise_multiplier below 1e-6 is no noise; leave it out, or set 0")
        if self.max_epsilon is not None and not self.noise_multiplier:
            raise ValueError("max_epsilon needs noise_multiplier: without noise there is no ε to bound")
        return self


class PolicySettings(PrivacySettings):
    """What may be asked of this site, and what may leave it."""

    kinds: tuple[RequestKind, ...] = ()
    """Kinds of requests that may be carried out; with none, none."""
    approval: bool = True
    """Whether a person has to approve each request here (`excise site approve`) before anything is done for it."""
    training: bool = False
    """Whether ordinary federated training may be asked for as well; simulations train their models that way."""
    exact_counts: bool = False
    """Whether numbers of images leave as they are; else the next multiple of `min_count` (docs/adr/0015): a number, and the
    difference of two, is then zero or stands for so many."""
    profiles: bool = False
    """Whether losses leave as means over small groups of images, and how many independent images those are worth. Calibrated
    targets and the membership test need them."""
    embeddings: bool = False
    """Whether a point for each of some hundreds of images leaves: where models put it in two dimensions, on a coarse grid,
    with its class and whether it is to be forgotten (docs/adr/0021). All else that leaves is over many images."""
    metrics: tuple[Metric, ...] = ()
    """Which measured numbers leave; an update's weights and an audit's numbers of images leave with any."""
    privacy: UpdatePrivacySettings = UpdatePrivacySettings()
    """What is done to an update before it leaves: nothing, unless told."""
    hours: tuple[time, time] | None = None
    """When rounds may be answered, local time, such as ``["20:00", "06:00"]``; at any time without."""
    releases: tuple[str, ...] = (__version__,)
    """Releases of excise that may run here."""
    bundles: tuple[str, ...] = ()
    """SHA-256 of Flower's app bundles that may run here. A bundle of excise holds no code, it names the installed one."""

    def told(self, images: int) -> int:
        """A number of images as it may leave. 0 stays 0: a site without forget images has nothing to do for a request."""
        return images if self.exact_counts else -(-images // self.min_count) * self.min_count

    def told_at_least(self, amount: float) -> float:
        """An amount as it may leave when it must not seem larger than it is; 0 when too little is left, or it is NaN."""
        if math.isnan(amount):
            return 0.0
        return amount if self.exact_counts else float(amount // self.min_count * self.min_count)

    @field_validator("hours")
    @classmethod
    def _differ(cls, hours: tuple[time, time] | None) -> tuple[time, time] | None:
        if hours and hours[0] == hours[1]:
            raise ValueError("begins when it ends; leave `hours` out to allow any time")
        return hours


class LimitSettings(Settings):
    """How much of its machine a site gives."""

    rounds: int = Field(200, ge=1)
    """Most unlearning rounds of one request, in all its runs and for all its candidates."""
    steps: int = Field(1000, ge=1)
    """Most gradient steps of one round, of unlearning or training."""
    seconds: float = Field(3600, gt=0)
    """Most seconds of one round; it is then given up."""
    gpu_share: float = Field(1.0, gt=0, le=1)
    """Most of the GPU's memory, as a share."""
