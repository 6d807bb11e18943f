"""What a site allows: its own settings. Whatever is left out is not allowed.

The site owns its policy. What the coordinator asks for may be less than it, never more (`permission.py` checks).
"""

from __future__ import annotations

import math
from datetime import time
from enum import StrEnum

from pydantic import Field, field_validator

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
    metrics: tuple[Metric, ...] = ()
    """Which measured numbers leave; an update's weights and an audit's numbers of images leave with any."""
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
