"""Every method of the benchmark as one thing that is given a task and settings, and gives a model and what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from excise.simulations.baselines.federated.problem import FederatedMethod
from excise.simulations.baselines.method import Knob, Method, Settings
from excise.simulations.contest.task import Task
from excise.simulations.judging.cost import Cost


@dataclass(frozen=True)
class Outcome:
    """A revised model, in evaluation mode, and what it took; a central method has no rounds.

    Attributes
    ----------
    earlier : of several requests in a row the models before, one after each request but the last
    """

    model: nn.Module
    cost: Cost
    earlier: tuple[nn.Module, ...] = ()

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """After each request."""
        return (*self.earlier, self.model)


@dataclass(frozen=True)
class Entry:
    """A method that takes part.

    Attributes
    ----------
    name : unique among all that take part
    federated : whether images stay at their sites; a central method has those of all sites at one place, an advantage that no
        federation can give it
    knobs, paper : as of the method
    run : does it, under a seed
    """

    name: str
    federated: bool
    knobs: Mapping[str, Knob]
    paper: str
    run: Callable[[Task, Settings, int], Outcome]


def entry_of(method: Method | FederatedMethod) -> Entry:
    """A method as one that takes part."""
    if isinstance(method, FederatedMethod):

        def together(task: Task, settings: Settings, seed: int) -> Outcome:
            problem, began = replace(task.federated(), seed=seed), time.monotonic()
            made = method(problem, settings)
            return Outcome(made.model, Cost(images=made.passes, seconds=time.monotonic() - began, rounds=made.rounds))

        return Entry(method.name, True, method.knobs, method.paper, together)

    def in_one_place(task: Task, settings: Settings, seed: int) -> Outcome:
        problem, began = replace(task.central(), seed=seed), time.monotonic()
        made = method(problem, settings)
        return Outcome(made.model, Cost(images=made.passes, seconds=time.monotonic() - began))

    return Entry(f"{method.name} (one place)", False, method.knobs, method.paper, in_one_place)


def entries_of(methods: Iterable[Method | FederatedMethod]) -> dict[str, Entry]:
    """Methods as they take part, by name."""
    return {entry.name: entry for entry in map(entry_of, methods)}
