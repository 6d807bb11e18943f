"""What a federated method of the benchmark is given, what it gives, and what it is: as `method.py`, for several sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from excise.common.errors import ConfigError
from excise.common.settings import TrainingSettings
from excise.common.weights import Weights
from excise.simulations.baselines.method import (
    Aim,
    Images,
    Knob,
    Settings,
    aim_of,
    check_finite,
    check_images,
    chosen_settings,
    knobs_of,
)

Updates = Mapping[str, Weights]
"""What each site's update was, by name: its floating-point weights after a round less those of the model before."""


@dataclass(frozen=True)
class Part:
    """What one site holds: training images to forget and to keep, and images that nothing was trained on; any may be none."""

    forget: Images
    retain: Images
    unseen: Images


@dataclass(frozen=True)
class FederatedProblem:
    """Something to be forgotten of a model that sites trained together. No method sees the images on which it is judged.

    Attributes
    ----------
    original : the deployed model, in evaluation mode; it must not be changed
    initial : the model from which its training began
    sites : what each site holds, by name
    whole_class : whether the forget images of all sites are all there are of their classes
    history : the updates of the rounds of training, the earliest first; empty where nobody stored them
    seed : of everything that is drawn
    wrong_labels : whether the forget images are forgotten since their labels are wrong
    training : how the deployed model was trained
    """

    original: nn.Module
    initial: nn.Module
    sites: Mapping[str, Part]
    whole_class: bool
    history: Sequence[Updates] = ()
    seed: int = 0
    wrong_labels: bool = False
    training: TrainingSettings = field(default_factory=TrainingSettings)

    @property
    def aim(self) -> Aim:
        """What is forgotten."""
        return aim_of(self.whole_class, self.wrong_labels)

    @property
    def forget(self) -> dict[str, int]:
        """How many images to forget each site holds."""
        return {name: len(part.forget[1]) for name, part in self.sites.items()}

    @property
    def retain(self) -> dict[str, int]:
        """How many images to keep each site holds."""
        return {name: len(part.retain[1]) for name, part in self.sites.items()}

    @property
    def forgetting(self) -> list[str]:
        """Names of the sites that hold something to be forgotten."""
        return [name for name, n in self.forget.items() if n]

    @property
    def keeping(self) -> list[str]:
        """Names of the sites that hold something to keep."""
        return [name for name, n in self.retain.items() if n]


@dataclass(frozen=True)
class Composed:
    """What a federated method made.

    Attributes
    ----------
    model : the revised model, in evaluation mode
    passes : images sent through any model, at all sites
    rounds : times that sites were asked and answered
    bytes_up, bytes_down : from and to each site that was asked, by its name (`traffic.py`); empty where nobody counted them
    """

    model: nn.Module
    passes: int
    rounds: int
    bytes_up: Mapping[str, int] = field(default_factory=dict)
    bytes_down: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FederatedMethod:
    """A way to unlearn together.

    Attributes
    ----------
    name, paper, knobs : as of `Method`
    run : does it; called with the problem and a value for each knob
    needs_history : whether it works on the stored updates of the rounds of training
    """

    name: str
    run: Callable[[FederatedProblem, Settings], Composed]
    paper: str
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    needs_history: bool = False

    def __call__(self, problem: FederatedProblem, settings: Settings | None = None) -> Composed:
        """Unlearn, with the knobs' defaults where `settings` says nothing.

        Raises
        ------
        ConfigError : there is no such knob, a value lies outside its range, no site has images to forget or none has images
            to keep, or the method needs updates that nobody stored
        Diverged : a number of the model that was made is not finite
        """
        chosen = chosen_settings(self.name, knobs_of(self.knobs, problem.aim), settings or {})
        check_images(sum(problem.forget.values()), sum(problem.retain.values()))
        if self.needs_history and not problem.history:
            raise ConfigError(f"{self.name} needs the sites' updates of all rounds of training, and nobody stored them")
        made = self.run(problem, chosen)
        check_finite(self.name, made.model)
        return made
