"""What the coordinator takes by itself: a run whose sites are files, so that whatever is allocated is the coordinator's."""

from __future__ import annotations

import gc
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from excise.common.weights import load_weights
from excise.server.coordinator import Coordinator
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.simulations.bench import processes
from excise.simulations.bench.answers import Given
from excise.simulations.engine import one_thread
from excise.simulations.local_grid import LocalGrid

MIB = 2**20
ROUNDS = 2
"""Rounds of unlearning that are measured: the page tells the largest."""


@dataclass(frozen=True)
class Recorded:
    """A run that can be carried out again without sites.

    Attributes
    ----------
    plan : of the run; it names the deployed model
    wide : the same for a larger model
    answers : folder of the sites' answers
    """

    plan: Plan
    wide: Plan
    answers: Path


@dataclass(frozen=True)
class Held:
    """What the coordinator takes.

    Attributes
    ----------
    update : bytes of the arrays of one update, of the larger model, with which `rounds`, `whole` and `seconds` are measured
    rounds : most resident memory in each round of unlearning, MiB beyond what the process took before the run
    whole : the same in the whole run, audits and verification included, MiB
    numbers : what Python holds after a round, bytes (tracemalloc): what sites told. Tensors are not among them
    seconds : of each round, reading the answers included
    """

    update: int
    rounds: tuple[float, ...]
    whole: float
    numbers: int
    seconds: tuple[float, ...]


def held(run: Recorded, first: Recorded, home: Path) -> Held:
    """Measure `run`, in two processes that have nothing else to do.

    Parameters
    ----------
    first : a run that is carried out before: what is loaded once, and kept, is not the run's
    home : folder for the runs
    """
    update, peaks, looks = processes.alone(watched, run, first, home)
    _, *rounds, _ = peaks
    seconds = tuple(np.diff(looks).tolist())
    return Held(update, tuple(rounds), max(peaks), processes.alone(numbers, run, first, home), seconds)


def watched(run: Recorded, first: Recorded, home: Path) -> tuple[int, list[float], list[float]]:
    """Bytes of an update; peaks before the rounds, in each of them and after, MiB; and the times between them."""
    with one_thread():
        _Watched(first.wide, first.answers, 1, home / "first").carry_out()
        one = _Watched(run.wide, run.answers, ROUNDS, home / "run")
        one.carry_out()
    return one.update, one.peaks, one.looks


def numbers(run: Recorded, first: Recorded, home: Path) -> int:
    """`Held.numbers`, with the sites' own model."""
    with one_thread():
        _Watched(first.plan, first.answers, 1, home / "first-traced").carry_out()
        one = _Watched(run.plan, run.answers, 1, home / "traced")
        tracemalloc.start()
        one.carry_out()
        tracemalloc.stop()
    return one.traced


class _Watched:
    """A run, and what the process takes before its rounds, in each of them, and after."""

    def __init__(self, plan: Plan, answers: Path, rounds: int, folder: Path) -> None:
        assert plan.deployed is not None  # as `scale` makes it
        local = plan.unlearning.local.model_copy(update={"rounds": rounds})
        unlearning = plan.unlearning.model_copy(update={"local": local})
        self._plan, self._folder = plan.model_copy(update={"unlearning": unlearning}), folder
        model = load_weights(plan.deployed)
        # Made by now, not in the run: what the grid keeps of each site is not the coordinator's.
        self._grid = LocalGrid(Given(answers, model), plan.sites)
        self.update = sum(x.numel() * x.element_size() for x in model.values() if x.is_floating_point())
        self.peaks, self.looks, self.traced = list[float](), list[float](), 0

    def carry_out(self) -> None:
        gc.collect()
        self._before = processes.forget_peak()
        Coordinator(self._grid, self._plan, RunFolder(self._folder), self._after).run()
        self._peak()

    def _after(self, phase: str, *told: object) -> None:
        if phase != "unlearned":
            return
        self._peak()
        if tracemalloc.is_tracing():
            gc.collect()
            self.traced, _ = tracemalloc.get_traced_memory()
        self.looks.append(time.monotonic())

    def _peak(self) -> None:
        self.peaks.append((processes.peak() - self._before) / MIB)
        processes.forget_peak()
