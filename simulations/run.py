"""One simulation from a scenario to its run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w

from excise.client.config import read_site_config
from excise.common.files import write_atomically
from excise.server.carrying import carrying_out
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.server.report import write_report
from excise.simulations.engine import Backend, run_plan
from excise.simulations.extras import report_extras
from excise.simulations.scenario import CONFIG, Scenario
from excise.simulations.sites import Sites, make_sites

Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Simulation:
    """A finished simulation.

    Attributes
    ----------
    folder : the run folder, with ``report.html`` and ``model.safetensors``
    plan : what the coordinator carried out
    results : what is also in ``metrics.json``
    """

    folder: Path
    plan: Plan
    results: dict[str, Any]


def as_toml(scenario: Scenario) -> str:
    """The whole scenario with every default, as a scenario file."""
    return tomli_w.dumps(scenario.model_dump(mode="json", exclude_none=True))


def new_run_folder(out: Path, scenario: Scenario) -> Path:
    """A fresh folder below `out` that holds the scenario as ``config.toml``: give it to --scenario to repeat the run.

    Raises
    ------
    StorageError : the folder cannot be written
    """
    stem = f"{scenario.name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder = next(path for n in range(1000) if not (path := out / (stem + (f"-{n}" if n else ""))).exists())
    write_atomically(folder / CONFIG, as_toml(scenario))
    return folder


def simulate(scenario: Scenario, folder: Path, cache: Path, backend: Backend, progress: Progress) -> Simulation:
    """Make the sites, run the plan, write the report. Goes on from the checkpoints that `folder` holds.

    Raises
    ------
    ExciseError : see `excise.common.errors`; what was done so far stays in `folder`
    """
    with carrying_out(folder):
        sites = make_sites(scenario, cache, lambda done, total: progress("hospitals", done, total, ""))
        plan = plan_for(scenario, sites)
        results = run_plan(plan, sites.configs, RunFolder(folder), backend, progress)
        progress("report", 0, 1, "")
        write_report(folder, results, plan, report_extras(scenario, plan, sites, folder))
    progress("report", 1, 1, "done")
    return Simulation(folder, plan, results)


def plan_for(scenario: Scenario, sites: Sites) -> Plan:
    """The coordinator's plan, with the sites' names and a model as wide as there are classes."""
    plan = scenario.plan(len(sites.configs))
    names = tuple(read_site_config(path).name for path in sites.configs)
    model = plan.model.model_copy(update={"classes": len(sites.classes)})
    return plan.model_copy(update={"site_names": names, "model": model})
