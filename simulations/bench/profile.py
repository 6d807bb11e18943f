"""Where the engine's time goes: the operators that take most of it, in the naive search, in ours and in a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Generator
from torch.profiler import ProfilerActivity, profile

from excise.client.unlearning import boundary_search, unlearn
from excise.common.files import write_atomically
from excise.common.settings import SearchSettings, UnlearningSettings
from excise.simulations.bench.fashion_models import Task, take
from excise.simulations.bench.race import naive_search

SHOWN = 8


@dataclass(frozen=True)
class Profile:
    """One piece of work.

    Attributes
    ----------
    name : what was done
    seconds : of all operators together, without what they call
    operators : name, calls and share of `seconds`, the largest first
    """

    name: str
    seconds: float
    operators: tuple[tuple[str, int, float], ...]


def profiled(name: str, work: Callable[[], object]) -> Profile:
    """Do `work` once to set things up, then once more under the profiler."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        work()
    told = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in told)
    shown = tuple((event.key, event.count, event.self_cpu_time_total / total) for event in told[:SHOWN])
    return Profile(name, total / 1e6, shown)


def profile_engine(task: Task, search: SearchSettings, settings: UnlearningSettings, images: int) -> list[Profile]:
    """The search in its naive form and in ours on the same images, and one round of joint steps of `settings`."""
    x, y_N = take(task.forget, slice(images))
    one = settings.model_copy(update={"local": settings.local.model_copy(update={"rounds": 1})})
    return [
        profiled("Boundary search, naive", lambda: naive_search(task.original, x, y_N, search)),
        profiled(
            "Boundary search, excise", lambda: boundary_search(task.original, x, y_N, search, Generator().manual_seed(0))
        ),
        profiled("One round, search and joint steps", lambda: unlearn(task.original, (x, y_N), task.retain, settings=one)),
    ]


def write_profile_page(page: Path, profiles: list[Profile], images: int) -> None:
    """Write the page.

    Raises
    ------
    StorageError : it cannot be written
    """
    lines = [
        "# Where the engine's time goes",
        "",
        f"Written by `excise bench profile`: torch.profiler on the processor, {images} images of the class of",
        "[the engine's page](engine.md). Seconds are of the operators alone, each without those that it calls.",
    ]
    for one in profiles:
        lines += ["", f"## {one.name}: {one.seconds:.2f} s", "", "| operator | calls | share of the time |", "|---|---|---|"]
        lines += [f"| `{name}` | {calls:,} | {share:.1%} |" for name, calls, share in one.operators]
    write_atomically(page, "\n".join([*lines, ""]))
