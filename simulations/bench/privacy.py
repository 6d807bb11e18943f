"""What privacy of updates costs: a scenario unlearned under settings of `[policy.privacy]`, from the same deployed model.

The first run of a seed, without any, trains the deployed and the retrained model and measures how long updates are; the clip
of the others is the median of that, and fractions of it. `privacy_page.py` tells the figures. What is done is not run again.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Message

from excise.client.accountant import Accountant
from excise.client.policy import UpdatePrivacySettings
from excise.client.privacy import total_norm
from excise.common import messages as m
from excise.common.errors import QuorumError
from excise.common.weights import norm
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.simulations.engine import run_plan
from excise.simulations.local_grid import LocalGrid
from excise.simulations.run import plan_for
from excise.simulations.scenario import Scenario
from excise.simulations.sites import Sites, make_sites

Progress = Callable[[str, int, int, str], None]

UNDISTURBED = "undisturbed"
DELTA = 1e-5
"""δ at which ε is told."""
NORM_BOUND = 1e9
"""In place of the coordinator's bound on an update's norm: what noise does to the model is to be seen, not refused."""
RESULTS, NORMS = "private.json", "norms.json"
ALL_THREE = "all three"


def variants(median: float) -> dict[str, UpdatePrivacySettings]:
    """Settings by name; `median` is the median norm of an undisturbed update."""
    return {
        **{f"clip {share:g}×": UpdatePrivacySettings(clip=share * median) for share in (1, 0.5, 0.25)},
        **{f"keep {share:.0%}": UpdatePrivacySettings(keep_share=share) for share in (0.1, 0.01)},
        **{
            f"noise {z:g}": UpdatePrivacySettings(clip=median, noise_multiplier=z, delta=DELTA)
            for z in (0.001, 0.01, 0.1, 1, 10)
        },
        ALL_THREE: UpdatePrivacySettings(clip=median, noise_multiplier=0.01, keep_share=0.1, delta=DELTA),
    }


def recipe(scenario: Scenario) -> str:
    """Short digest of what a seed's results depend on: part of the name of the folder that keeps them."""
    told = [scenario.model_dump_json(), *(f"{name}{one.model_dump_json()}" for name, one in variants(1.0).items())]
    return hashlib.sha256("|".join(told).encode()).hexdigest()[:8]


def run_seed(scenario: Scenario, home: Path, cache: Path, progress: Progress) -> dict[str, Any]:
    """Results of every variant for the scenario's seed, by name, with the undisturbed run's and the lengths of its updates.

    Everything runs in this process: what leaves the sites is measured on its way.
    """
    sites, first = make_sites(scenario, cache), RunFolder(home / UNDISTURBED)
    plan = plan_for(scenario, sites)
    bare = _run(plan, sites, first, progress, lambda client, nodes: Measuring(client, nodes, first))
    lengths = json.loads((first.path / NORMS).read_text())
    median = statistics.median(total for total, _ in lengths.values())
    results = {UNDISTURBED: bare}
    models = first.path / "checkpoints"
    shared = {"deployed": models / "original.safetensors", "retrain": False}
    rounds = plan.rounds.model_copy(update={"norm_bound": NORM_BOUND, "watch": False})
    for name, privacy in variants(median).items():
        policy = scenario.policy.model_copy(update={"privacy": privacy})
        own = make_sites(scenario.model_copy(update={"policy": policy}), cache)
        folder = RunFolder(home / "".join(c if c.isalnum() else "-" for c in name))
        results[name] = _run(plan.model_copy(update={**shared, "rounds": rounds}), own, folder, progress)
    return {"results": results, "lengths": lengths, "median": median}


def _run(
    plan: Plan, sites: Sites, folder: RunFolder, progress: Progress, grid: Callable[..., LocalGrid] | None = None
) -> dict[str, Any]:
    """Scores of a run and ε of its sites; from its folder when they are there."""
    kept = folder.path / RESULTS
    if not kept.exists():
        try:
            results = run_plan(plan, sites.configs, folder, "inprocess", progress, grid)
            scores = {model: results[model]["pooled"] for model in ("original", "retrained", "unlearned") if model in results}
            told: dict[str, Any] = {"scores": scores, "rounds": len(results["unlearned"]["history"])}
        except QuorumError as error:  # the model was broken so far that sites could not go on
            told = {"failed": sorted(set(error.codes))}
        spent = {path.parent.name: Accountant(path.parent).spent(DELTA) for path in sites.configs}
        told["epsilon"] = {site: math.inf if one.bare else one.epsilon for site, one in spent.items()}
        folder.write_json(RESULTS, told)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


class Measuring(LocalGrid):
    """Keeps how long each unlearning update was, in all and its parameters alone, by round and node.

    A round that is repeated after an interruption takes the place of the first.
    """

    def __init__(self, client: Any, nodes: int, folder: RunFolder) -> None:
        super().__init__(client, nodes)
        self._folder = folder

    def _deliver(self, message: Message) -> str:
        message_id = super()._deliver(message)
        reply = self._replies.get(message_id)
        if message.metadata.message_type == m.UnlearnInstruction.KIND and reply is not None and reply.has_content():
            asked = m.UnlearnInstruction.from_record(message.content)
            delta = m.SiteUpdate.from_record(reply.content).delta
            self._keep(f"{asked.round_index}/{message.metadata.dst_node_id}", [total_norm(delta), norm(delta)])
        return message_id

    def _keep(self, key: str, lengths: list[float]) -> None:
        path = self._folder.path / NORMS
        known: Mapping[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
        self._folder.write_json(NORMS, {**known, key: lengths})
