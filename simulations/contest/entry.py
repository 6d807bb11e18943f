"""Every method of the benchmark as one thing that is given a task and settings, and gives a model and what that cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from excise.client.unlearning.local import Diverged
from excise.common.errors import ExciseError
from excise.simulations.baselines.federated.problem import FederatedMethod
from excise.simulations.baselines.method import Knob, Method, Settings
from excise.simulations.contest.resources import used
from excise.simulations.contest.task import Task
from excise.simulations.judging.cost import Cost


@dataclass(frozen=True)
class Outcome:
    """A revised model, in evaluation mode, and what it took; a central method has no rounds, and nothing travels.

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
            problem = replace(task.federated(), seed=seed)
            took = used(lambda: method(problem, settings))
            made = took.made
            cost = Cost(
                images=made.passes,
                seconds=took.seconds,
                rounds=made.rounds,
                bytes_up=made.bytes_up,
                bytes_down=made.bytes_down,
                peak_bytes=took.peak_bytes,
            )
            return Outcome(made.model, cost)

        return Entry(method.name, True, method.knobs, method.paper, together)

    def in_one_place(task: Task, settings: Settings, seed: int) -> Outcome:
        problem = replace(task.central(), seed=seed)
        took = used(lambda: method(problem, settings))
        return Outcome(took.made.model, Cost(images=took.made.passes, seconds=took.seconds, peak_bytes=took.peak_bytes))

    return Entry(f"{method.name} (one place)", False, method.knobs, method.paper, in_one_place)


def tried(run: Callable[[], Outcome]) -> Outcome | str:
    """What a method's run makes, or why that is nothing that can be judged."""
    try:
        outcome = run()
    except (ExciseError, Diverged) as error:  # it cannot do this task, or made nothing, and says why
        return str(error)
    return outcome


def entries_of(methods: Iterable[Method | FederatedMethod]) -> dict[str, Entry]:
    """Methods as they take part, by name."""
    return {entry.name: entry for entry in map(entry_of, methods)}
