"""Starting a run on the sites that are connected, and following it to its end.

The run itself is carried out by the server app (`server/app.py`), in a process of the SuperLink's. What it has done is in the
run's folder, so a run whose process, SuperLink or machine died goes on from its last whole round when it is started again.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from excise.common.bundle import bundle
from excise.common.decision import Standing
from excise.common.errors import ConfigError, ExciseError, Interrupted, QuorumError, RequestError
from excise.common.files import write_atomically
from excise.common.request import ForgetRequest, joined
from excise.common.settings import PRESETS
from excise.common.validation import explain
from excise.common.weights import load_weights, save_weights
from excise.server.config import ServerConfig, read_server_config, store_of
from excise.server.events import EVENTS, FAILED, STOPPED, add, events_of
from excise.server.life import State, check_move
from excise.server.link import UNKNOWN, linked
from excise.server.plan import Plan
from excise.server.record import DEPLOYED
from excise.server.registry import file_of, version
from excise.server.requests import COORDINATOR, RequestStatus, approvals, check_running, status, step
from excise.server.setup import AUTHORITY
from excise.server.store import Store
from excise.server.store.leases import held, lease_of
from excise.server.store.tables import Run, now
from excise.server.waiting import is_under_way

PAUSE = 0.5
"""Seconds between looks at a run."""
PATIENCE = 20.0
"""Most seconds for which the end of a run that was stopped is waited for."""
SETTINGS = ("unlearning", "composition", "rounds", "verification")
"""Tables that a file of settings may have."""
Tell = Callable[[dict[str, Any]], None]
"""Called with each event of the run, as it is written."""


class RunFailed(ExciseError):
    """A run came to nothing; the exit code is that of what it failed of."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Waiting(ExciseError):
    """Somebody else has to do something first; says who, and since when they are awaited."""

    exit_code = QuorumError.exit_code


def prepare(
    store: Store, folder: Path, config: ServerConfig, request_ids: Sequence[str], settings: Path | None, seed: int, by: str
) -> Path:
    """Make the folder of the run that carries out approved requests, from the model in use. Nothing is started.

    Parameters
    ----------
    folder : of the coordinator
    settings : TOML with tables of `SETTINGS`, in place of those of the preset
    by : who asked for it

    Returns
    -------
    The run's folder

    Raises
    ------
    Waiting : a request is not approved by every site yet
    ConfigError : there is no model, the requests concern different sites, or a setting is wrong
    RequestError : a request is unknown, past running, or the requests cannot be joined
    StorageError : the folder cannot be written
    """
    requests = [status(store, request_id).request for request_id in request_ids]
    request = joined(requests)
    with held(store, lease_of(request.id)):  # or two at once would write one folder
        return _prepared(store, folder, config, requests, request, _read_settings(settings), seed, by)


def _prepared(
    store: Store,
    folder: Path,
    config: ServerConfig,
    requests: Sequence[ForgetRequest],
    request: ForgetRequest,
    settings: dict[str, Any],
    seed: int,
    by: str,
) -> Path:
    sites, base, at = _sites_of(store, [one.id for one in requests]), version(store), config.runs / request.id
    chosen = {"unlearning": PRESETS[request.preset].model_dump(mode="json"), "verification": {"resurfacing": True}}
    try:
        plan = Plan.model_validate(
            {
                "seed": seed,
                "sites": len(sites),
                "site_names": sites,
                "model": base.spec,
                "deployed": at / DEPLOYED,
                "retrain": False,
                "request": request,
                "parts": requests if len(requests) > 1 else [],
                **_merged(chosen, settings),
            }
        )
    except ValidationError as error:
        raise ConfigError(explain(error, Plan, "the settings")) from error
    if (at / EVENTS).exists():
        raise ConfigError(f"{at} holds another run: move it away")
    save_weights(load_weights(file_of(folder, base.digest)), at / DEPLOYED)
    write_atomically(at / "plan.toml", tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)))
    ids = [one.id for one in requests]
    approved = [
        {"request": one.request, "site": one.site, "decision": one.decision, "signature": one.signature, "key": one.key}
        for request_id in ids
        for one in approvals(store, request_id)
    ]
    with store.change() as change:
        made = Run(name=request.id, requests=json.dumps(ids), base=base.version, at=now(), approvals=json.dumps(approved))
        change.session.add(made)
        change.session.flush()
        step(change, ids, State.RUNNING, by, "", request.id)
        change.log("run begun", run=request.id, requests=ids, model=base.version, by=by)
    return at


def _sites_of(store: Store, request_ids: Sequence[str]) -> list[str]:
    """The sites that approved requests concern, all of them the same.

    Raises
    ------
    Waiting : one is not approved by every site yet
    ConfigError : they concern different sites
    RequestError : one is past running
    """
    asked = [status(store, request_id) for request_id in request_ids]
    for one in asked:
        name = one.request.id
        if one.state is State.DRAFTED:
            raise Waiting(_undecided(one))
        if one.state is State.RUNNING:
            raise RequestError(
                f"'{name}' is running: its run was begun at {one.since}. To go on with it: excise server resume {one.run}; to "
                f"give it up: excise server requests reject {name}"
            )
        check_move(one.request.id, one.state, State.RUNNING)
    sites = sorted(asked[0].sites)
    if any(sorted(one.sites) != sites for one in asked):
        raise ConfigError("the requests concern different sites: carry them out one after another")
    return sites


def _undecided(one: RequestStatus) -> str:
    """Why a request that is drafted is not run, yet or at all."""
    name = one.request.id
    denied = [site for site, standing in one.sites.items() if standing == Standing.DENIED]
    pending = [site for site in one.waits_for if site != COORDINATOR]
    if not denied:
        return f"'{name}' waits for {', '.join(pending)} since {one.since}: nobody runs it before"
    waits = f", and waits for {', '.join(pending)} since {one.since}" if pending else ""
    return (
        f"'{name}' was denied by {', '.join(denied)}{waits}: nobody runs it unless they approve after all. To give it up: "
        f"excise server requests reject {name}"
    )


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


def carry_out(
    server_toml: Path,
    run: Path,
    tell: Tell = lambda _: None,
    resumed_by: str = "",
    started: Callable[[], object] = lambda: None,
) -> None:
    """Start the run in `run`, or let it go on, and follow it to its end.

    Parameters
    ----------
    resumed_by : who lets it go on, for the audit log; empty for one that begins
    started : called once nothing stands against it and the SuperLink has it

    Raises
    ------
    ConfigError : there is no such run, another process carries it out, or the SuperLink does not answer
    RequestError : it is at its end, or the store knows nothing of it
    RunFailed : it came to nothing; says why
    Interrupted : Ctrl-C; the run is stopped and can be resumed
    """
    if not (run / "plan.toml").exists():
        raise ConfigError(f"no run at {run}")
    config = read_server_config(server_toml)
    with store_of(server_toml) as store, held(store, lease_of(run.name)):  # whoever carried it out is gone, or is dead
        check_running(store, run.name)
        if resumed_by:
            with store.change() as change:
                change.log("run resumed", run=run.name, by=resumed_by)
    began = seen = len(events_of(run))
    try:
        with linked(config.link_port, server_toml.parent / AUTHORITY) as link:
            number = link.start(bundle(), {"run": str(run.absolute()), "server": str(server_toml.absolute())})
            started()
            try:
                while True:
                    standing = link.standing(number)
                    events = events_of(run, seen)
                    seen += len(events)
                    for event in events:
                        tell(event)
                    if standing in ("completed", "failed", "stopped", UNKNOWN):
                        break
                    time.sleep(PAUSE)
            except KeyboardInterrupt:
                with suppress(Exception):  # it may be down by now
                    link.stop(number)
                    with store_of(server_toml) as store:
                        _ended(store, run)
                raise Interrupted(f"stopped; go on with excise server resume {run.name}") from None
    except ExciseError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the SuperLink does not answer ({type(error).__name__}): is excise server up running? Then: "
            f"excise server resume {run.name}"
        ) from error
    if standing != "completed":
        failed = [event for event in events_of(run, began) if event["event"] == FAILED][-1:]
        told = failed[0]["message"] if failed else ""
        raise RunFailed(
            f"the run '{run.name}' is {standing}. {told or 'The log in the state of the coordinator says more.'}\n"
            f"What was done is kept: excise server resume {run.name}",
            failed[0]["exit_code"] if failed else 1,
        )


def stop(server_toml: Path, run: str, by: str) -> bool:
    """Stop a run that is under way, whoever started it; what was done is kept. Returns whether there was anything to stop.

    Returns once nobody carries it out any more, or after `PATIENCE` seconds.

    Raises
    ------
    ConfigError : the SuperLink does not answer
    RequestError : the store knows no such run, or it is at its end
    """
    config = read_server_config(server_toml)
    with store_of(server_toml) as store:
        check_running(store, run)
        try:
            with linked(config.link_port, server_toml.parent / AUTHORITY) as link:
                ours = str((config.runs / run).absolute())
                found = [number for number, folder in link.under_way().items() if folder == ours]
                for number in found:
                    link.stop(number)
        except Exception as error:
            told = f"the SuperLink does not answer ({type(error).__name__}): is excise server up running?"
            raise ConfigError(told) from error
        if found:
            _ended(store, config.runs / run)
            with store.change() as change:
                change.log("run stopped", run=run, by=by)
    return bool(found)


def _ended(store: Store, run: Path) -> None:
    """Wait for the process of a run that was stopped to end; its events say then that it stopped, unless it was at its end."""
    ends = time.monotonic() + PATIENCE
    while is_under_way(store, run) and time.monotonic() < ends:
        time.sleep(PAUSE)
    with suppress(RequestError):
        check_running(store, run.name)
        if not is_under_way(store, run):
            add(run, STOPPED)
