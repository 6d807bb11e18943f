"""What people decide of a request and of the model that came of it; the command line and the dashboard both decide here.

Functions may be called again with the same arguments and change nothing then, as those that they are made of.
"""

from __future__ import annotations

from pathlib import Path

from excise.server.config import ServerConfig
from excise.server.evidence_pack import write_pack
from excise.server.life import State
from excise.server.registry import promote as use
from excise.server.registry import roll_back, version
from excise.server.requests import move, of_run, status
from excise.server.store import Store
from excise.server.store.leases import held, lease_of


def reject(store: Store, name: str, by: str, why: str) -> None:
    """Carry a request out no more, or do not use what came of it.

    Raises
    ------
    RequestError : there is none of this name, or it is at its end
    ConfigError : it runs just now
    """
    run = status(store, name).run
    if not run:
        move(store, [name], State.REJECTED, by, why)
        return
    with held(store, lease_of(run)):  # what one run carries out together ends together, and not while it runs
        move(store, of_run(store, run), State.REJECTED, by, why)


def promote(store: Store, folder: Path, config: ServerConfig, run: str, by: str, why: str) -> int:
    """Use the revised model of a verified run from now on; returns its version.

    Raises
    ------
    RequestError : it is not verified, or the model in use is another one by now
    DataError : the audit log is not as it was written
    """
    from excise.server.record import REVISED  # here, since it needs torch

    store.check_log()
    promoted = use(store, folder, run, config.runs / run / REVISED, by, why)
    write_pack(store, config, run)
    return promoted


def leave(store: Store, folder: Path, config: ServerConfig, model: int, by: str, why: str) -> int:
    """Use the model again that the present one, `model`, was made of; returns its version.

    Raises
    ------
    ConfigError : another model is in use, or there is none to go back to
    """
    left = version(store, model)
    back = roll_back(store, folder, model, by, why)
    if left.run:
        write_pack(store, config, left.run)
    return back
