"""What composing the updates of many sites costs: seconds and memory against their number."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from excise.common.models import ModelSpec, build_model
from excise.common.settings import CompositionSettings
from excise.common.weights import Weights, snapshot
from excise.server.composition import Update, new_composer
from excise.simulations.bench import processes

RESNET = ModelSpec(name="resnet18")
"""11 million weights."""


@dataclass(frozen=True)
class Composed:
    """Seconds and memory of composing one round.

    Attributes
    ----------
    sites : updates
    seconds : of taking all of them and making the revised weights
    models : most memory beyond the base and one update, in models of float32
    """

    sites: int
    seconds: float
    models: float


def composing(sites: Sequence[int], rule: str = "mean", model: ModelSpec = RESNET) -> list[Composed]:
    """Compose simulated updates of a model; each number of sites in its own process."""
    return [processes.alone(_compose, count, rule, model) for count in sites]


def _compose(sites: int, rule: str, model: ModelSpec) -> Composed:
    base = snapshot(build_model(model))
    size = sum(x.numel() * x.element_size() for x in base.values())
    generator = Generator().manual_seed(0)
    delta = {name: 1e-3 * torch.randn(x.shape, generator=generator) for name, x in base.items() if x.is_floating_point()}
    update = _copy(delta)  # so that the peak holds one update already
    before, seconds = processes.forget_peak(), 0.0
    composer = new_composer(CompositionSettings(rule=rule), base)
    for k in range(sites):
        del update
        update = _copy(delta)  # of its own, as from a site: a composer that kept updates would be seen
        began = time.perf_counter()
        composer.add(Update(f"site-{k}", update, 1 / sites, k % 8 == 0))
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    composer.result()
    return Composed(sites, seconds + time.perf_counter() - began, (processes.peak() - before) / size)


def _copy(delta: Weights) -> Weights:
    return {name: x.clone() for name, x in delta.items()}
