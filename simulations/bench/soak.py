"""A soak: many sites and rounds in one process, some sites silent or failing, and the process's memory after each round."""

from __future__ import annotations

import gc
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from scipy.stats import theilslopes

from excise.common.messages import SiteUpdate
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import (
    LocalSettings,
    RoundSettings,
    SearchSettings,
    TrainingSettings,
    UnlearningSettings,
)
from excise.server.coordinator import Coordinator
from excise.server.record import RunFolder
from excise.simulations.bench import processes
from excise.simulations.engine import one_thread, simulated_client
from excise.simulations.local_grid import LocalGrid
from excise.simulations.run import plan_for
from excise.simulations.scenario import Partition, Scenario, ScenarioData, ScenarioPolicy
from excise.simulations.sites import make_sites

SIDE = 16
IMAGES = 40
"""Images of a site: enough that every set of a site holds some."""
FLAKY = 0.1
"""Share of the sites that fail now and then."""
FAILS, SILENT = 0.1, 0.01
"""How often such a site answers a round with what cannot be used, and how often with nothing before the round's deadline."""
DEADLINE = 20.0
"""Seconds: several times what a round takes, so that none but those sites miss it."""
SEED = 0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Soaked:
    """What was measured.

    Attributes
    ----------
    megabytes : resident memory after each round, MiB
    refused : rounds of sites whose answer was not used, by code; among them those that came too late
    late : answers that came in a later round, and were known as such
    seconds : of the whole run
    """

    sites: int
    rounds: int
    megabytes: tuple[float, ...]
    refused: dict[str, int]
    late: int
    seconds: float


@dataclass(frozen=True)
class Slope:
    """Growth, MiB in 100 rounds, and its 95 % interval."""

    value: float
    low: float
    high: float


def soak(sites: int, rounds: int, home: Path, progress: Progress, deadline: float = DEADLINE) -> Soaked:
    """Unlearn for `rounds` rounds at `sites` sites, with the real apps, in this process.

    Parameters
    ----------
    home : folder for the sites and the run
    """
    scenario = noise_scenario(
        home,
        sites,
        training=TrainingSettings(rounds=1, learning_rate=0.05),
        unlearning=quick_rounds(sites, rounds),
        rounds=RoundSettings(quorum=0.5, deadline=deadline),
    )
    made = make_sites(scenario, home / "cache")
    plan = plan_for(scenario, made).model_copy(update={"retrain": False})
    folder, megabytes = RunFolder(home / "run"), list[float]()

    def after(phase: str, done: int, total: int, _: str) -> None:
        if phase == "unlearned" and done:
            megabytes.append(resident())
            progress(f"round {done} of {total}: {megabytes[-1]:.1f} MiB")

    grid = Flaky(simulated_client(made.configs), sites, round(FLAKY * sites))
    began = time.monotonic()
    with one_thread():
        Coordinator(grid, plan, folder, after).run()
    events = folder.events()
    refused = Counter(event["code"] for event in events if event["event"] == "refused")
    late = sum(event["event"] == "late" for event in events)
    return Soaked(sites, rounds, tuple(megabytes[:rounds]), dict(refused), late, time.monotonic() - began)


def slope(megabytes: Sequence[float]) -> Slope:
    """Growth over the second half, robust against single rounds (Theil and Sen's median of slopes)."""
    half = megabytes[len(megabytes) // 2 :]
    value, _, low, high = theilslopes(half, np.arange(len(half)), alpha=0.95)
    return Slope(100 * float(value), 100 * float(low), 100 * float(high))


def resident() -> float:
    """Memory of this process that is in use, MiB, without what the garbage collector has yet to take."""
    gc.collect()
    return processes.resident()


class Flaky(LocalGrid):
    """A grid whose first `flaky` nodes fail now and then in rounds of unlearning; which and when follows from `SEED`."""

    def __init__(self, client_app: ClientApp, nodes: int, flaky: int) -> None:
        super().__init__(client_app, nodes)
        self._flaky = set(list(self.get_node_ids())[:flaky])
        self._chance = random.Random(SEED)  # noqa: S311 - no secret
        self._held: dict[int, dict[str, Message]] = {}  # answers that come in a later round, by node

    def _deliver(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        self._replies |= self._held.pop(node, {})
        message_id = super()._deliver(message)
        if node not in self._flaky or message.metadata.message_type != "train.unlearn":
            return message_id
        reply, drawn = self._replies[message_id], self._chance.random()
        if drawn < SILENT:
            self._held[node] = {message_id: self._replies.pop(message_id)}
        elif drawn < SILENT + FAILS:
            self._replies[message_id] = self._chance.choice((_crashed, _malformed, _diverged))(reply, message)
        return message_id


def _crashed(_: Message, asked: Message) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ""), reply_to=asked)


def _malformed(_: Message, asked: Message) -> Message:
    return Message(RecordDict(), reply_to=asked)


def _diverged(reply: Message, asked: Message) -> Message:
    update = SiteUpdate.from_record(reply.content)
    delta = {name: torch.full_like(tensor, math.nan) for name, tensor in update.delta.items()}
    return Message(replace(update, delta=delta).to_record(), reply_to=asked)


def quick_rounds(sites: int, rounds: int) -> UnlearningSettings:
    """A short search, and rounds of one small step in which all sites take part: none takes turns."""
    together = max(LocalSettings().retain_batch, sites)
    local = LocalSettings(rounds=rounds, steps=1, learning_rate=1e-3, retain_batch=together, retain_batch_at_site=1)
    return UnlearningSettings(search=SearchSettings(max_steps=5), local=local)


def noise_scenario(
    home: Path, sites: int, images_a_site: int = IMAGES, where: str = "", model: ModelSpec | None = None, **settings: Any
) -> Scenario:
    """Images of noise with a bright half, left or right; a fifth of the sites have something to forget.

    Parameters
    ----------
    home : folder for the images
    where : what is forgotten in place of class 1 of that fifth
    model : in place of a narrow `allcnn`
    settings : of `Scenario`, beside data, model and request
    """
    rng, labels = np.random.default_rng(SEED), np.arange(sites * images_a_site) % 2
    images = rng.integers(0, 120, (len(labels), SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        image[:, label * SIDE // 2 : (label + 1) * SIDE // 2] += 100
    home.mkdir(parents=True, exist_ok=True)
    np.savez(home / "images.npz", images=images.astype(np.uint8), labels=labels)
    forgetting = ", ".join(f'"site-{number}"' for number in range(1, max(1, sites // 5) + 1))
    return Scenario(
        name="soak",
        seed=SEED,
        data=ScenarioData(source="npz", path=home / "images.npz"),
        partition=Partition(sites=sites),
        policy=ScenarioPolicy(min_count=2),
        model=model or ModelSpec(name="allcnn", size=SIDE, width=0.05),
        request=ForgetRequest(
            id="soak",
            kind=RequestKind.SAMPLES,
            where=where or f"site in ({forgetting}) and class = 1",
            reason="a soak",
        ),
        **settings,
    )
