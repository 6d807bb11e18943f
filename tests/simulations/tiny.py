"""What the tests of unlearning methods share: a net and images so small that a method takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor, nn

from excise.client.training import train_locally
from excise.client.unlearning.inference import predict
from excise.common.metrics import accuracy
from excise.common.settings import TrainingSettings
from excise.simulations.baselines.central import ours
from excise.simulations.baselines.method import Images

SIDE = 9


def few_steps_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ours take two or three steps in a round, of batches of 32 retain images, and three in a search."""
    monkeypatch.setattr(ours, "STEPS", dict.fromkeys(ours.STEPS, 1))
    for aim, preset in ours.OF.items():
        fewer = {
            "local": preset.local.model_copy(update={"steps": 2}),
            "search": preset.search.model_copy(update={"max_steps": 3}),
        }
        monkeypatch.setitem(ours.OF, aim, preset.model_copy(update=fewer))


class Net(nn.Module):
    """Three convolutions with batch norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 6, 8, 8)
        blocks: list[nn.Module] = []
        for a, b in pairwise(widths):
            blocks += [nn.Conv2d(a, b, 3, padding=1, stride=1 if a == 1 else 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.backbone = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(8 * 3 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x))
        return logits


def new_net() -> nn.Module:
    """The same net each time, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def pictures(each: int, seed: int) -> Images:
    """Noise with a bright third: which one is the class."""
    generator = Generator().manual_seed(seed)
    y = torch.arange(3 * each) % 3
    x = 0.6 * torch.rand(3 * each, 1, SIDE, SIDE, generator=generator)
    for image, c in zip(x, y.tolist(), strict=True):
        image[:, :, 3 * c : 3 * c + 3] += 0.4
    return x, y


def trained(images: Images) -> nn.Module:
    model, settings = new_net(), TrainingSettings(rounds=6, batch_size=32, learning_rate=0.05, augment=False)
    for r in range(settings.rounds):
        train_locally(model, *images, settings, r, Generator().manual_seed(r))
    return model.eval()


def of(images: Images, which: Tensor) -> Images:
    """Those images for which `which`, bool or row numbers, says so."""
    return images[0][which], images[1][which]


def first(images: Images, n: int) -> Images:
    return of(images, torch.arange(n))


def none_of(images: Images) -> Images:
    return first(images, 0)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def scores(model: nn.Module) -> tuple[float, float]:
    """Accuracy on unseen images of class 0 and of the others."""
    test = pictures(40, 2)
    gone, kept = of(test, test[1] == 0), of(test, test[1] != 0)
    return accuracy(predict(model, gone[0]), gone[1]), accuracy(predict(model, kept[0]), kept[1])


@contextmanager
def counting(*models: nn.Module) -> Iterator[list[int]]:
    """Counts the images that go through models and through every copy of them, which keeps their hooks."""
    counted = [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counted[0] += len(inputs[0])

    handles = [model.register_forward_pre_hook(count) for model in models]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()
