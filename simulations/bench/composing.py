"""What composing the updates of many sites costs: seconds and memory against their number."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from excise.common.models import ModelSpec, build_model
from excise.common.settings import CompositionSettings
from excise.common.weights import snapshot
from excise.server.composition import Update, new_composer


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


def composing(sites: Sequence[int]) -> list[Composed]:
    """Compose simulated updates of a ResNet-18 (11 million weights) by the mean; each number of sites in its own process."""
    context = multiprocessing.get_context("spawn")  # a process of its own: peak memory is told for a whole process
    results = []
    for count in sites:
        with context.Pool(1) as pool:
            results.append(pool.apply(_compose, (count,)))
    return results


def _compose(sites: int) -> Composed:
    base = snapshot(build_model(ModelSpec(name="resnet18")))
    size = sum(x.numel() * x.element_size() for x in base.values())
    generator = Generator().manual_seed(0)
    delta = {name: 1e-3 * torch.randn(x.shape, generator=generator) for name, x in base.items() if x.is_floating_point()}
    before = _peak_bytes()
    began = time.perf_counter()
    composer = new_composer(CompositionSettings(), base)
    for k in range(sites):
        composer.add(Update(f"site-{k}", delta, 1 / sites, k % 8 == 0))
    composer.result()
    return Composed(sites, time.perf_counter() - began, (_peak_bytes() - before) / size)


def _peak_bytes() -> int:
    """Most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
