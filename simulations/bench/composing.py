"""What composing the updates of many sites costs: seconds and memory against their number."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Generator

from excise.common.models import ModelSpec, build_model
from excise.common.settings import CompositionSettings
from excise.common.weights import Weights, snapshot
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


GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment in which the C library gives freed tensors back at once (mallopt(3)). By chance it may keep some: a peak of 3.5
models was once told as one of 5."""


def composing(sites: Sequence[int], rule: str = "mean") -> list[Composed]:
    """Compose simulated updates of a ResNet-18 (11 million weights); each number of sites in its own process."""
    context = multiprocessing.get_context("spawn")  # a process of its own: peak memory is told for a whole process
    results = []
    with mock.patch.dict(os.environ, GIVEN_BACK):
        for count in sites:
            with context.Pool(1) as pool:
                results.append(pool.apply(_compose, (count, rule)))
    return results


def _compose(sites: int, rule: str) -> Composed:
    base = snapshot(build_model(ModelSpec(name="resnet18")))
    size = sum(x.numel() * x.element_size() for x in base.values())
    generator = Generator().manual_seed(0)
    delta = {name: 1e-3 * torch.randn(x.shape, generator=generator) for name, x in base.items() if x.is_floating_point()}
    update = _copy(delta)  # so that the peak holds one update already
    before, seconds = _forget_peak(), 0.0
    composer = new_composer(CompositionSettings(rule=rule), base)
    for k in range(sites):
        del update
        update = _copy(delta)  # of its own, as from a site: a composer that kept updates would be seen
        began = time.perf_counter()
        composer.add(Update(f"site-{k}", update, 1 / sites, k % 8 == 0))
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    composer.result()
    return Composed(sites, seconds + time.perf_counter() - began, (_status("VmHWM") - before) / size)


def _copy(delta: Weights) -> Weights:
    return {name: x.clone() for name, x in delta.items()}


def _forget_peak() -> int:
    """Bytes that this process has resident now, from which its peak is counted from now on (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A number of /proc/self/status, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
