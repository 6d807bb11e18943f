"""Gradient steps as every baseline takes them, counted: SGD with momentum, clipped, on batches whose size is a setting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Generator, Tensor, nn

from excise.common.errors import ConfigError
from excise.simulations.baselines.method import Images, Knob, Made

MOMENTUM, CLIP = 0.9, 5.0
BATCH = Knob(16, 128, 64, log=True, whole=True, of={"classes": 32})
"""Images of a step, a setting of every method that takes steps: how many there are of a pass decides as much as how large they
are (docs/adr/0028-settings-of-rivals.md)."""
AT_ONCE = 256
"""Images of one pass where nothing is learned from the batch: bounds the memory, changes no number."""


class Descent:
    """A copy of a model that is trained further.

    Attributes
    ----------
    model : the copy, in training mode
    passes : images sent through it so far; whoever asks another model adds its own
    """

    def __init__(
        self, original: nn.Module, learning_rate: float, choose: Callable[[nn.Module], Iterable[Tensor]] | None = None
    ):
        """Copy `original`; `choose` names the parameters of the copy that change, all of them when left out."""
        self.model, self.passes = copy.deepcopy(original), 0
        chosen = list(choose(self.model) if choose else self.model.parameters())
        self.model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        self.model.train()
        self._chosen = chosen
        self._optimiser = torch.optim.SGD(chosen, learning_rate, MOMENTUM)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of the copy. One image alone cannot be normalised by its own statistics: it is by the running ones."""
        self.passes += len(x)
        norms = [module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        live = [module for module in norms if module.training and len(x) == 1]
        for module in live:
            module.eval()
        logits: Tensor = self.model(x)
        for module in live:
            module.train()
        return logits

    def step(self, loss: Tensor) -> None:
        """One step down `loss`, clipped."""
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._chosen, CLIP)
        self._optimiser.step()

    def made(self) -> Made:
        """The model as it is now."""
        return Made(self.model.requires_grad_(True).eval(), self.passes)


def batches(images: Images, generator: Generator, size: int) -> Iterator[Images]:
    """Every image once, in a drawn order, `size` at a time. One that would be left alone goes with the batch before it."""
    x, y = images
    drawn = list(torch.randperm(len(y), generator=generator).split(size))
    if len(drawn) > 1 and len(drawn[-1]) == 1:
        drawn[-2:] = [torch.cat(drawn[-2:])]
    for rows in drawn if len(y) else ():
        yield x[rows], y[rows]


def endless(images: Images, generator: Generator, size: int) -> Iterator[Images]:
    """Batches again and again, in another order each time; `images` must hold at least one."""
    assert len(images[1]), "no images to go through again and again"
    while True:
        yield from batches(images, generator, size)


def parts(images: Images) -> Iterator[Images]:
    """Every image once, in order, in parts small enough for one pass."""
    return zip(images[0].split(AT_ONCE), images[1].split(AT_ONCE), strict=True)


def untrained(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that gives logits and is never trained: a teacher."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def layers(model: nn.Module) -> Sequence[list[nn.Module]]:
    """Layers from the input to the head: a convolution or linear map, with whatever normalises it before the next one."""
    found: list[list[nn.Module]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found.append([module])
        elif found and next(module.parameters(recurse=False), None) is not None:
            found[-1].append(module)
    return found


def last_layers(model: nn.Module, k: int) -> list[nn.Parameter]:
    """Parameters of the last `k` layers."""
    return [parameter for layer in layers(model)[-k:] for module in layer for parameter in module.parameters()]


def begin_anew(model: nn.Module, k: int, seed: int) -> None:
    """Draw the weights of the last `k` layers as those of a new model are drawn; no global state is touched.

    Raises
    ------
    ConfigError : a module of them cannot draw its weights: it has no `reset_parameters`
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers(model)[-k:]:
            for module in layer:
                reset = getattr(module, "reset_parameters", None)
                if not callable(reset):
                    raise ConfigError(f"{type(module).__name__} cannot begin anew: it has no reset_parameters()")
                reset()


def classes(model: nn.Module) -> int:
    """Number of classes that a model tells apart: outputs of its last layer."""
    return len(layers(model)[-1][0].get_parameter("weight"))
