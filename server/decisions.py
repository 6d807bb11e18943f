"""What people decide of a request and of the model that came of it; the command line and the dashboard both decide here.

Functions may be called again with the same arguments and change nothing then, as those that they are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from excise.common.errors import RequestError
from excise.server.config import ServerConfig
from excise.server.evidence_pack import write_pack
from excise.server.life import State
from excise.server.registry import InUse, roll_back, run_of, version
from excise.server.registry import promote as use
from excise.server.requests import move, of_run, status
from excise.server.store import Store
from excise.server.store.leases import held, lease_of


@dataclass(frozen=True)
class RolledBack:
    """A model that was left.

    Attributes
    ----------
    version : the model that is in use again
    again : whether it had been left before, so that nothing was changed
    requests : ids of those that it has not forgotten, and the one that was left had
    """

    version: int
    requests: tuple[str, ...]
    again: bool = False

    @property
    def warning(self) -> str:
        """What people have to know of it; empty when nothing was forgotten."""
        if not self.requests:
            return ""
        return (
            f"Model {self.version} has not forgotten {', '.join(self.requests)}. A site that ran excise site forget has left "
            "those images out for good: they are in the model in use again and can no longer be unlearned. Ask the sites; "
            "excise site status tells them. A request that was rolled back is drafted anew under another id"
        )


def reject(store: Store, name: str, by: str, why: str) -> list[str]:
    """Carry a request out no more, or do not use what came of it. All that one run carries out together end together.

    Returns
    -------
    Ids of those that were rejected just now, and not before

    Raises
    ------
    RequestError : there is none of this name, or it is at its end
    ConfigError : it runs just now
    """
    run = status(store, name).run
    if not run:
        return move(store, [name], State.REJECTED, by, why)
    with held(store, lease_of(run)):  # not while it runs
        return move(store, of_run(store, run), State.REJECTED, by, why)


def promote(store: Store, folder: Path, config: ServerConfig, run: str, by: str, why: str) -> InUse:
    """Use the revised model of a verified run from now on.

    Raises
    ------
    RequestError : it has no run yet, it is not verified, or the model in use is another one by now
    DataError : the audit log is not as it was written
    """
    if not of_run(store, run):
        raise RequestError(f"'{run}' has no run yet: excise server run begins one, excise server status tells of all")
    if not run_of(store, run).document:
        raise RequestError(f"the run '{run}' has no revised model yet: excise server resume {run}")
    from excise.server.record import REVISED  # here, since it needs torch

    store.check_log()
    promoted = use(store, folder, run, config.runs / run / REVISED, by, why)
    write_pack(store, config, run)
    return promoted


def leave(store: Store, folder: Path, config: ServerConfig, model: int, by: str, why: str) -> RolledBack:
    """Use the model again that the present one, `model`, was made of.

    Raises
    ------
    ConfigError : another model is in use, or there is none to go back to
    """
    left = version(store, model)
    back = roll_back(store, folder, model, by, why)
    if left.run:
        write_pack(store, config, left.run)
    has = version(store, back.version).requests
    return RolledBack(back.version, tuple(request for request in left.requests if request not in has), back.again)
