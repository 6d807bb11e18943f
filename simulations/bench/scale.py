"""Scale: rounds of unlearning at more and more sites in one process; seconds, bytes, and what the coordinator alone takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from excise.common.errors import ConfigError
from excise.common.models import ModelSpec, build_model
from excise.common.settings import RoundSettings
from excise.common.weights import save_weights, snapshot
from excise.server.coordinator import Coordinator
from excise.server.plan import Plan, VerificationSettings
from excise.server.record import RunFolder
from excise.simulations.bench.answers import Kept
from excise.simulations.bench.scale_memory import Held, Recorded, held
from excise.simulations.bench.small_net import small_net
from excise.simulations.bench.soak import SIDE, noise_scenario, quick_rounds
from excise.simulations.engine import one_thread, simulated_client
from excise.simulations.local_grid import LocalGrid
from excise.simulations.run import plan_for
from excise.simulations.scenario import ScenarioPolicy
from excise.simulations.sites import make_sites

SITES = (4, 8, 16, 32, 64, 128, 256, 512, 1000)
"""Nine, since the interval of a power is wide over a few: of five it is Student's t with three degrees of freedom."""
IMAGES = 20
"""Images of a site."""
WHERE = 'class = 1 and (site matches "*1" or site matches "*5")'
"""A fifth of the sites, a fourth of few; as long at any number of sites, for it travels with every question."""
MODEL = ModelSpec(name=f"{small_net.__module__}:{small_net.__name__}", size=SIDE, width=0.25)
WIDE = MODEL.model_copy(update={"width": 1.0})
"""What memory is measured with, 16 times as large: an update of a megabyte. Smaller ones would be lost among all else."""
WINDOW = SITES[0]
"""Messages under way at once: no more than the fewest sites, so that any number of sites fills it."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Scaled:
    """What was measured at one number of sites.

    Attributes
    ----------
    seconds : of each round, coordinator and sites together, one site after another
    processor : seconds of processor time in each round, which other work on the machine hardly changes
    down, up : bytes of one site in one round, of the model that the sites unlearn
    held : what the coordinator takes, measured without the sites
    """

    sites: int
    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    down: float
    up: float
    held: Held


@dataclass(frozen=True)
class Power:
    """How a quantity grows: as sites to the power of `value`, with its 95 % interval; 1 is linear, 0 flat."""

    value: float
    low: float
    high: float


def rounds_of(sites: int) -> int:
    """Rounds that are measured: more where they are short."""
    return max(3, min(12, 256 // sites))


def scale(numbers: Sequence[int], rounds: Callable[[int], int], home: Path, progress: Progress) -> list[Scaled]:
    """Measure at each of `numbers` sites.

    Parameters
    ----------
    rounds : how many rounds of unlearning, by the number of sites
    home : folder for sites and runs

    Raises
    ------
    ConfigError : `numbers` are not three different ones at least, each of two sites at least
    """
    numbers = sorted(set(numbers))
    if len(numbers) < 3 or numbers[0] < 2:
        raise ConfigError(
            "growth needs three different numbers of sites at least, each of two sites at least; "
            f"got {', '.join(map(str, numbers)) or 'none'}. Give --sites several times, or not at all"
        )
    found, first = [], None
    for sites in numbers:
        ran = _run(sites, rounds(sites), home / f"{sites}", progress)
        first = first or ran.recorded
        progress(f"{sites} sites: memory of the coordinator")
        memory = held(ran.recorded, first, home / f"{sites}" / "alone")
        found.append(Scaled(sites, ran.seconds, ran.processor, ran.down, ran.up, memory))
    return found


def power(sites: Sequence[int], values: Sequence[float]) -> Power:
    """Slope of the straight line through the logarithms, least squares; the interval is Student's t.

    Parameters
    ----------
    values : a measured quantity, one for each of `sites`, which may repeat; three at least
    """
    x, y = np.log(sites), np.log(values)
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    # scipy's linregress gives no error where all values are equal.
    error = math.sqrt(float(left @ left / (x @ x)) / (len(x) - 2))
    half = float(student_t.ppf(0.975, len(x) - 2)) * error
    return Power(slope, slope - half, slope + half)


@dataclass(frozen=True)
class _Ran:
    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    down: float
    up: float
    recorded: Recorded


def _run(sites: int, rounds: int, home: Path, progress: Progress) -> _Ran:
    """A whole run with the real apps; what the sites answer is kept."""
    progress(f"{sites} sites: making them")
    scenario = noise_scenario(
        home,
        sites,
        IMAGES,
        WHERE,
        MODEL,
        unlearning=quick_rounds(sites, rounds),
        rounds=RoundSettings(deadline=86_400, window=WINDOW, watch=False),
        verification=VerificationSettings(resamples=100),
    )
    scenario = scenario.model_copy(update={"policy": ScenarioPolicy(min_count=1)})  # of a thousand some have few of a kind
    made = make_sites(scenario, home / "cache")
    plan = _untrained(plan_for(scenario, made), home / "deployed.safetensors")
    kept, looks = Kept(simulated_client(made.configs), home / "answers"), list[tuple[float, float]]()

    def after(phase: str, done: int, total: int, _: str) -> None:
        if phase == "unlearned":
            looks.append((time.monotonic(), time.process_time()))
            progress(f"{sites} sites: round {done} of {total}")

    with one_thread():
        Coordinator(LocalGrid(kept, sites), plan, RunFolder(home / "run"), after).run()
    assert len(looks) == rounds + 1
    wide = _untrained(plan.model_copy(update={"model": WIDE}), home / "wide.safetensors")
    seconds, processor = (tuple(np.diff(times).tolist()) for times in zip(*looks, strict=True))
    return _Ran(seconds, processor, kept.down / kept.answers, kept.up / kept.answers, Recorded(plan, wide, home / "answers"))


def _untrained(plan: Plan, path: Path) -> Plan:
    """The same with a deployed model that was never trained: what is measured does not depend on what it knows."""
    save_weights(snapshot(build_model(plan.model, plan.seed)), path)
    return plan.model_copy(update={"deployed": path, "retrain": False})
