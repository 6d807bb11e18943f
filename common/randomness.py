"""Randomness that follows from a seed and leaves no trace in the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


@contextmanager
def layers_seeded_by(generator: Generator, device: torch.device) -> Iterator[None]:
    """Let layers that draw at random (dropout) repeat, for the block.

    They draw from torch's global generators, which are seeded with the seed of `generator` and put back afterwards;
    `generator` itself is not moved.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator.initial_seed())
        yield
