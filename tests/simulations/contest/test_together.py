"""Federated averaging as the benchmark trains: its mean is that of the images, its history adds up, its seed decides."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Generator, nn

from excise.client.training import train_locally
from excise.common.models import ModelSpec, build_model
from excise.common.settings import TrainingSettings
from excise.common.weights import difference, snapshot
from excise.simulations.baselines.method import Images
from excise.simulations.contest.together import train_together

SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
SETTINGS = TrainingSettings(rounds=3, batch_size=8, learning_rate=0.05, augment=False)


def quiet(text: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def sites() -> Mapping[str, Images]:
    generator = Generator().manual_seed(1)
    return {
        name: (torch.rand(count, 1, 16, 16, generator=generator), torch.arange(count) % 2)
        for name, count in (("a", 24), ("b", 8), ("nobody", 0))
    }


@pytest.fixture
def initial() -> nn.Module:
    return build_model(SPEC, 0)


def test_the_mean_is_weighed_by_images(initial: nn.Module, sites: Mapping[str, Images]) -> None:
    made = train_together(initial, sites, SETTINGS.model_copy(update={"rounds": 1}), 5, quiet)
    updates = {}
    for place, name in enumerate(("a", "b")):
        model = copy.deepcopy(initial)
        train_locally(
            model, *sites[name], SETTINGS.model_copy(update={"rounds": 1}), 0, Generator().manual_seed(5_000_000 + place)
        )
        updates[name] = difference(snapshot(model), snapshot(initial))
    after, before = snapshot(made.model), snapshot(initial)
    for key in updates["a"]:
        torch.testing.assert_close(after[key], before[key] + 0.75 * updates["a"][key] + 0.25 * updates["b"][key])


def test_the_history_leads_from_the_first_model_to_the_last(initial: nn.Module, sites: Mapping[str, Images]) -> None:
    made = train_together(initial, sites, SETTINGS, 0, quiet)
    assert [set(updates) for updates in made.updates] == [{"a", "b"}] * 3
    assert (made.cost.images, made.cost.rounds) == (3 * 32, 3)
    one = 4 * sum(value.numel() for value in made.updates[0]["a"].values())
    assert made.cost.bytes_up == made.cost.bytes_down == {"a": 3 * one, "b": 3 * one}
    assert not train_together(initial, sites, SETTINGS, 0, quiet, stored=False).updates
    now = {key: value.clone() for key, value in snapshot(initial).items()}
    for updates in made.updates:
        for key in updates["a"]:
            now[key] = now[key] + 0.75 * updates["a"][key] + 0.25 * updates["b"][key]
    after = snapshot(made.model)
    for key in made.updates[0]["a"]:
        torch.testing.assert_close(now[key], after[key])


def test_the_same_seed_gives_the_same_and_leaves_the_first_model_alone(
    initial: nn.Module, sites: Mapping[str, Images]
) -> None:
    before = {key: value.clone() for key, value in snapshot(initial).items()}
    first, again, other = (snapshot(train_together(initial, sites, SETTINGS, seed, quiet).model) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert all(torch.equal(before[key], value) for key, value in snapshot(initial).items())
