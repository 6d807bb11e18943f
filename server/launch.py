"""Starting a run on the sites that are connected, and following it to its end.

The run itself is carried out by the server app (`server/app.py`), in a process of the SuperLink's. What it has done is in the
run's folder, so a run whose process, SuperLink or machine died goes on from its last whole round when it is started again.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from excise.common.bundle import bundle
from excise.common.errors import ConfigError, ExciseError, Interrupted
from excise.common.files import write_atomically
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind, joined
from excise.common.settings import PRESETS
from excise.common.validation import explain
from excise.common.weights import load_weights, save_weights
from excise.server.config import ServerConfig
from excise.server.link import UNKNOWN, linked
from excise.server.plan import Plan
from excise.server.record import FAILED, RunFolder
from excise.server.setup import AUTHORITY

PAUSE = 0.5
"""Seconds between looks at a run."""
SETTINGS = ("unlearning", "composition", "rounds", "verification")
"""Tables that a file of settings may have."""
Tell = Callable[[dict[str, Any]], None]
"""Called with each event of the run, as it is written."""


class RunFailed(ExciseError):
    """A run came to nothing; the exit code is that of what it failed of."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def prepare(
    config: ServerConfig,
    requests: list[ForgetRequest],
    spec: ModelSpec,
    weights: Path,
    sites: list[str],
    settings: Path | None = None,
) -> Path:
    """Make the folder of a run: its plan, and the deployed model. Nothing is started.

    Raises
    ------
    ConfigError : the weights are not of this model, no site is let in, there is such a run already, or a setting is wrong
    RequestError : the requests cannot be joined
    StorageError : the folder cannot be written
    """
    if not sites:
        raise ConfigError("no site is let in: excise server admit SITE KEY")
    request = joined(requests)
    deployed = load_weights(weights)
    try:
        build_model(spec).load_state_dict(deployed)
    except RuntimeError as error:
        raise ConfigError(f"{weights} is not of the model '{spec.name}' as described: {error}") from error
    folder = config.runs / request.id
    if (folder / "plan.toml").exists():
        raise ConfigError(f"there is a run of '{request.id}': excise server resume {request.id}, or move {folder} away")
    preset = PRESETS["classes" if request.kind is RequestKind.CLASS else "samples"]
    chosen = {"unlearning": preset.model_dump(mode="json"), "verification": {"resurfacing": True}}
    try:
        plan = Plan.model_validate(
            {
                "sites": len(sites),
                "site_names": sorted(sites),
                "model": spec,
                "deployed": folder / "deployed.safetensors",
                "retrain": False,
                "request": request,
                "parts": requests if len(requests) > 1 else [],
                **_merged(chosen, _read_settings(settings)),
            }
        )
    except ValidationError as error:
        raise ConfigError(explain(error, Plan, str(settings))) from error
    save_weights(deployed, folder / "deployed.safetensors")
    write_atomically(folder / "plan.toml", tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)))
    return folder


def _read_settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"no settings at {path}: {error}") from error
    if odd := told.keys() - SETTINGS:
        raise ConfigError(f"{path} has '{min(odd)}'; it may have the tables {', '.join(SETTINGS)}")
    return told


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `over` says, table by table."""
    both = {key: _merged(base[key], over[key]) for key in base.keys() & over if isinstance(base[key], dict)}
    return {**base, **over, **both}


def carry_out(folder: Path, config: ServerConfig, run: Path, tell: Tell = lambda _: None) -> None:
    """Start the run in `run`, or let it go on, and follow it to its end.

    Parameters
    ----------
    folder : of the coordinator

    Raises
    ------
    ConfigError : there is no such run, or the SuperLink does not answer
    RunFailed : it came to nothing; says why
    Interrupted : Ctrl-C; the run is stopped and can be resumed
    """
    if not (run / "plan.toml").exists():
        raise ConfigError(f"no run at {run}")
    record, seen = RunFolder(run), len(RunFolder(run).events())
    try:
        with linked(config.link_port, folder / AUTHORITY) as link:
            number = link.start(bundle(), {"run": str(run.absolute())})
            try:
                while True:
                    standing = link.standing(number)
                    events = record.events(seen)
                    seen += len(events)
                    for event in events:
                        tell(event)
                    if standing in ("completed", "failed", "stopped", UNKNOWN):
                        break
                    time.sleep(PAUSE)
            except KeyboardInterrupt:
                with suppress(Exception):  # it may be down by now
                    link.stop(number)
                raise Interrupted(f"stopped; go on with excise server resume {run.name}") from None
    except ExciseError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the SuperLink does not answer ({type(error).__name__}): is excise server up running? Then: "
            f"excise server resume {run.name}"
        ) from error
    if standing != "completed":
        failed = [event for event in record.events() if event["event"] == FAILED][-1:]
        told = failed[0]["message"] if failed else ""
        raise RunFailed(
            f"the run '{run.name}' is {standing}. {told or 'The log in the state of the coordinator says more.'}\n"
            f"What was done is kept: excise server resume {run.name}",
            failed[0]["exit_code"] if failed else 1,
        )
