"""Does what was forgotten stay forgotten? Taught again with little, and trained on with retain images alone.

*Relearning*: steps of fine-tuning on a tenth of the forget set until the accuracy on it is back near the original's. A
model in which the knowledge is only hidden relearns faster than one that never had it; the ratio to the retrained model's
steps tells, and 1 is ideal. *Resurfacing*: one epoch on retain images alone, and all that was measured is measured again.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from excise.client.training import train_locally
from excise.client.unlearning.inference import predict
from excise.common.metrics import accuracy
from excise.common.settings import Settings, TrainingSettings
from excise.simulations.judging.checks import share

Images = tuple[Tensor, Tensor]
"""Images in [0, 1], float (N, channels, *spatial), and classes, integers (N,)."""
SHARE = 0.1
"""Of the forget set that is taught again."""
SLACK = 0.05
"""By how much accuracy may stay below the original's and still count as back."""
ROUNDING = 1e-6
"""Accuracies are means in float32: 19 of 20 is a hair below 0.95."""
LOOKED = 16
"""Images that the relearn test looks at together."""


class RelearnSettings(Settings):
    """Plain SGD: a momentum would make the first steps, which are what is counted, weaker than the later ones."""

    learning_rate: float = Field(0.01, gt=0)
    """Step size."""
    batch_size: int = Field(32, ge=1)
    """Images of one step, drawn without replacement until all were seen."""
    most_steps: int = Field(200, ge=1)
    """Steps after which the test ends."""


@dataclass(frozen=True)
class Relearned:
    """How a relearn test ended.

    Attributes
    ----------
    steps : gradient steps until the goal was reached; when `censored`, how many were done without reaching it
    censored : the goal was not reached: more than `steps` are needed, and nobody knows how many
    """

    steps: int
    censored: bool


def goal_of(original_accuracy: float, slack: float = SLACK) -> float:
    """Accuracy at which knowledge counts as back: the original's less `slack`, at least 0.

    Raises
    ------
    ValueError : a number outside [0, 1]
    """
    return max(0.0, share(original_accuracy, "original's accuracy") - share(slack, "slack"))


def taught(y_N: Tensor, part: float = SHARE, seed: int = 0) -> Tensor:
    """Row numbers of the part of a forget set that is taught again, at least one of each class; int64, ascending.

    Raises
    ------
    ValueError : an empty forget set, or a part outside (0, 1]
    """
    if len(y_N) == 0 or not 0 < part <= 1:
        raise ValueError(f"expected forget images and a part in (0, 1], got {len(y_N)} and {part}")
    generator, rows = Generator().manual_seed(seed), []
    for c in y_N.cpu().unique():
        of_class = (y_N.cpu() == c).nonzero()[:, 0]
        rows.append(of_class[torch.randperm(len(of_class), generator=generator)[: max(1, round(part * len(of_class)))]])
    return torch.cat(rows).sort().values


def relearn(
    model: nn.Module, tuned: Images, judged: Images, goal: float, settings: RelearnSettings | None = None, seed: int = 0
) -> Relearned:
    """Fine-tune a copy of the model until its accuracy on the judged images reaches `goal`.

    Layers stay in evaluation mode: a batch of one class would spoil the statistics of batch norm, which is no relearning.

    Parameters
    ----------
    model : left as it is
    tuned : images that it is taught; `taught` chooses them
    judged : images on which it is looked at, such as the forget set
    goal : accuracy in [0, 1]; `goal_of` the original's
    settings : the same for all models that are compared; the defaults when left out
    seed : of the order of images

    Raises
    ------
    ValueError : no image on a side, other numbers of labels than of images, or a goal outside [0, 1]
    """
    share(goal, "goal")
    for images, name in ((tuned, "tuned"), (judged, "judged")):
        _check(images, f"{name} images")
    settings = settings or RelearnSettings()
    student, generator = copy.deepcopy(model).eval().requires_grad_(True), Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(student.parameters(), settings.learning_rate)
    watch, queue = _Watch(judged, goal), torch.empty(0, dtype=torch.int64)
    for step in range(settings.most_steps + 1):
        if watch.reached(student):
            return Relearned(step, censored=False)
        if step == settings.most_steps:
            break
        if len(queue) == 0:
            queue = torch.randperm(len(tuned[1]), generator=generator)
        batch, queue = queue[: settings.batch_size], queue[settings.batch_size :]
        loss = F.cross_entropy(student(tuned[0][batch]), tuned[1][batch])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return Relearned(settings.most_steps, censored=True)


class _Watch:
    """Whether a model that changes little by little has reached an accuracy, from as few images as that takes.

    Those that it last got wrong are looked at first: mostly they are more than the goal allows, and no other needs a look.
    """

    def __init__(self, images: Images, goal: float) -> None:
        self._images, self._order = images, torch.arange(len(images[1]), device=images[1].device)
        self._may_be_wrong = (1 - goal + ROUNDING) * len(images[1])

    def reached(self, model: nn.Module) -> bool:
        x, y_N = self._images
        wrong, right, rest = list[Tensor](), list[Tensor](), self._order
        while len(rest) and sum(map(len, wrong)) <= self._may_be_wrong:
            rows, rest = rest[:LOOKED], rest[LOOKED:]
            is_right = predict(model, x[rows]).argmax(1) == y_N[rows]
            wrong.append(rows[~is_right])
            right.append(rows[is_right])
        self._order = torch.cat([*wrong, rest, *right])
        return sum(map(len, wrong)) <= self._may_be_wrong


class Bound(StrEnum):
    """What the ratio of two relearn tests is worth when one of them did not reach its goal."""

    EXACT = "exact"
    AT_LEAST = "at least"
    AT_MOST = "at most"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RelearnRatio:
    """Steps of the unlearned model ÷ steps of the retrained one; 1 is ideal, less means that knowledge was only hidden.

    Attributes
    ----------
    value : the ratio, or the bound that is known; NaN when `bound` is unknown
    bound : what `value` is
    """

    value: float
    bound: Bound

    @property
    def exact(self) -> float:
        """The ratio; NaN where only a bound is known, which must not be averaged or ranked as if it were the value."""
        return self.value if self.bound is Bound.EXACT else math.nan

    def __str__(self) -> str:
        """Such as ``0.40`` or ``≥ 2.50``; a dash where nothing is known."""
        signs = {Bound.EXACT: "", Bound.AT_LEAST: "≥ ", Bound.AT_MOST: "≤ "}
        return "–" if self.bound is Bound.UNKNOWN else f"{signs[self.bound]}{self.value:.2f}"


def relearn_ratio(unlearned: Relearned, retrained: Relearned) -> RelearnRatio:
    """Compare two relearn tests of the same settings, images and goal.

    Two that needed no step at all are alike: 1. Where the retrained model alone needed none, or both did not reach the goal,
    nothing is known of the ratio.
    """
    if unlearned.censored and retrained.censored:
        return RelearnRatio(math.nan, Bound.UNKNOWN)
    if retrained.steps == 0:
        return RelearnRatio(1.0, Bound.EXACT) if unlearned.steps == 0 else RelearnRatio(math.nan, Bound.UNKNOWN)
    bound = Bound.AT_LEAST if unlearned.censored else Bound.AT_MOST if retrained.censored else Bound.EXACT
    return RelearnRatio(unlearned.steps / retrained.steps, bound)


def after_retain_epoch(model: nn.Module, retain: Images, settings: TrainingSettings, seed: int = 0) -> nn.Module:
    """A copy of the model after one epoch of ordinary training on retain images alone; to be measured again.

    Parameters
    ----------
    model : left as it is
    retain : images that it is trained on
    settings : those of training; one round of one epoch is done, at the step size that they name

    Raises
    ------
    ValueError : no image, or another number of labels than of images
    """
    _check(retain, "retain images")
    later = copy.deepcopy(model).requires_grad_(True)
    train_locally(later, *retain, settings.model_copy(update={"rounds": 1, "epochs": 1}), 0, Generator().manual_seed(seed))
    return later


@dataclass(frozen=True)
class Resurfaced:
    """A score on the forget set before and after the retain-only epoch, of which more is more knowledge.

    The epoch moves every model somewhat, so the rise of the retrained model is ideal, not none.
    """

    before: float
    after: float

    @property
    def rise(self) -> float:
        """After minus before."""
        return self.after - self.before


def resurfaced(model: nn.Module, forget: Images, retain: Images, settings: TrainingSettings, seed: int = 0) -> Resurfaced:
    """Accuracy on the forget set before and after one retain-only epoch; arguments and errors as in `after_retain_epoch`."""
    _check(forget, "forget images")
    later = after_retain_epoch(model, retain, settings, seed)
    before, after = (accuracy(predict(one, forget[0]), forget[1]) for one in (model, later))
    return Resurfaced(before, after)


def _check(images: Images, name: str) -> None:
    x, y_N = images
    if len(x) == 0 or y_N.shape != (len(x),):
        raise ValueError(f"{name}: expected at least one, and a label for each, got {len(x)} and labels of {tuple(y_N.shape)}")
