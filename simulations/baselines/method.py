"""What a method of the benchmark is: it takes a problem and its settings, and gives a model and what that cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from excise.client.unlearning import Diverged
from excise.common.errors import ConfigError

Images = tuple[Tensor, Tensor]
"""Images (N, channels, rows, columns), float32 in [0, 1], and their classes, int64 (N,)."""
Settings = Mapping[str, float]
Aim = Literal["samples", "classes", "labels"]
"""What is forgotten; excise has a preset of that name (`common/settings.py`)."""


@dataclass(frozen=True)
class Problem:
    """Something to be forgotten of a deployed model. No method sees the images on which it is judged.

    Attributes
    ----------
    original : the deployed model, in evaluation mode; it maps images to logits and must not be changed
    forget, retain : its training images, at least one of each
    unseen : images that nothing was trained on, of the same classes; not those on which methods are judged. There may be none
    whole_class : whether the forget images are all there are of their classes
    seed : of everything that is drawn
    wrong_labels : whether the forget images are forgotten since their labels are wrong
    """

    original: nn.Module
    forget: Images
    retain: Images
    unseen: Images
    whole_class: bool
    seed: int = 0
    wrong_labels: bool = False

    @property
    def aim(self) -> Aim:
        """What is forgotten."""
        return aim_of(self.whole_class, self.wrong_labels)


def aim_of(whole_class: bool, wrong_labels: bool) -> Aim:
    """What is forgotten: whole classes, labels that are wrong, or the images themselves."""
    return "classes" if whole_class else "labels" if wrong_labels else "samples"


@dataclass(frozen=True)
class Made:
    """What a method made.

    Attributes
    ----------
    model : the revised model, in evaluation mode
    passes : images sent through any model, forward or forward and backward
    """

    model: nn.Module
    passes: int


@dataclass(frozen=True)
class Knob:
    """A setting that is searched: from `low` to `high`, on a logarithmic scale or not, whole numbers or not.

    Attributes
    ----------
    default : what the search tries first
    of : by what is forgotten, where that makes a difference: what is tried first in the same range, or another knob
    """

    low: float
    high: float
    default: float
    log: bool = False
    whole: bool = False
    of: Mapping[Aim, float | Knob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could not be searched.

        Raises
        ------
        ValueError : the default lies outside, or a logarithmic scale begins at 0
        """
        for default in {self.default, *(other for other in self.of.values() if not isinstance(other, Knob))}:
            if not self.low <= default <= self.high or (self.log and self.low <= 0):
                raise ValueError(f"a knob from {self.low} to {self.high} cannot have the default {default}")

    def at(self, aim: Aim) -> Knob:
        """The knob for what is forgotten, without those for anything else."""
        other = self.of.get(aim, self.default)
        return replace(other, of={}) if isinstance(other, Knob) else replace(self, default=other, of={})

    def holds(self, value: float) -> bool:
        """Whether `value` can be chosen."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.whole and value != int(value))

    def __str__(self) -> str:
        return f"{'a whole number ' if self.whole else ''}from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Method:
    """A way to unlearn with all images in one place.

    Attributes
    ----------
    name : as its paper spells it
    run : does it; called with the problem and a value for each knob
    paper : where it was published
    knobs : settings that are searched, at most three besides the size of batches, and their ranges
    """

    name: str
    run: Callable[[Problem, Settings], Made]
    paper: str
    knobs: Mapping[str, Knob] = field(default_factory=dict)

    def __call__(self, problem: Problem, settings: Settings | None = None) -> Made:
        """Unlearn, with the knobs' defaults where `settings` says nothing.

        Raises
        ------
        ConfigError : there is no such knob, a value lies outside its range, or there are no forget or no retain images
        Diverged : a number of the model that was made is not finite
        """
        chosen = chosen_settings(self.name, knobs_of(self.knobs, problem.aim), settings or {})
        check_images(len(problem.forget[1]), len(problem.retain[1]))
        made = self.run(problem, chosen)
        check_finite(self.name, made.model)
        return made


def knobs_of(knobs: Mapping[str, Knob], aim: Aim) -> dict[str, Knob]:
    """A method's knobs for what is forgotten."""
    return {name: knob.at(aim) for name, knob in knobs.items()}


def chosen_settings(name: str, knobs: Mapping[str, Knob], settings: Settings) -> Settings:
    """A value for each knob: that of `settings`, else its default.

    Raises
    ------
    ConfigError : there is no such knob, or a value lies outside its range
    """
    for knob, value in settings.items():
        if knob not in knobs or not knobs[knob].holds(value):
            known = "; ".join(f"{known} {of}" for known, of in knobs.items())
            raise ConfigError(f"{name} has no {knob} = {value}: choose among {known or 'nothing, it has no settings'}")
    return {knob: of.default for knob, of in knobs.items()} | dict(settings)


def check_images(forget: int, retain: int) -> None:
    """Refuse a problem in which there is nothing to forget or nothing to keep.

    Raises
    ------
    ConfigError : it is one
    """
    if not forget or not retain:
        raise ConfigError(f"a problem needs images to forget and images to keep, got {forget} and {retain}")


def check_finite(name: str, model: nn.Module) -> None:
    """Refuse a model that is broken: a search must not take it for one that has forgotten well.

    Raises
    ------
    Diverged : a weight or a statistic is not finite
    """
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise Diverged(f"{name} made a model with numbers that are not finite; use a smaller step size")
