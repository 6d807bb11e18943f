"""The process that keeps a site and its coordinator of one mind about requests: new ones come in, decisions go out.

It asks by a stream that stays open, and begins anew when that ends. What it learns is kept by `client/requests.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from excise.client import logs
from excise.client.config import read_site_config
from excise.client.coordinator import Coordinator, CoordinatorRefused, CoordinatorSilent, Told, connected
from excise.client.promoted import in_use
from excise.client.requests import Requests
from excise.common.decision import Standing
from excise.common.errors import ExciseError, RequestError

PAUSE, LONGEST = 1.0, 60.0
"""Seconds before the coordinator is asked again: twice as many each time that it does not answer, at most a minute."""
DECIDABLE = ("drafted", "approved", "running")
"""While the coordinator says one of these of a request, it takes decisions."""
TOO_OFTEN = "resource_exhausted"
"""The coordinator's code for a site that asks too often: of what it refuses, this alone is taken later."""
log = logging.getLogger("excise.client")


def watch(site_toml: Path, coordinator: Coordinator) -> None:
    """Take in what the coordinator tells until it ends.

    Raises
    ------
    CoordinatorSilent, CoordinatorRefused : it ended
    StorageError : what it told cannot be kept
    """
    kept = Requests(site_toml.parent)
    coordinator.report(in_use(site_toml.parent))
    for told in coordinator.watch():
        take_in(kept, coordinator, told)


def take_in(kept: Requests, coordinator: Coordinator, told: Told) -> None:
    """Keep a request that came, and what the coordinator says of it; tell it what was decided here, if it does not know."""
    try:
        request = told.request
        if told.standing:  # this site is asked
            kept.arrive(request)
        kept.note(request, told.state, told.since, told.waits_for)
        deliver(kept, coordinator, told)
    except RequestError as error:  # of this one request; the others go on
        log.warning("a request of the coordinator cannot be kept", extra={"details": {"kind": type(error).__name__}})


def deliver(kept: Requests, coordinator: Coordinator, told: Told) -> None:
    """Tell the coordinator what was decided here of a request, when it knows otherwise and takes decisions still.

    Raises
    ------
    CoordinatorRefused : this site asks too often; any other refusal is of this one decision and is logged
    """
    request = told.request
    signed = kept.signed(request)
    if not (told.standing and signed and told.state in DECIDABLE):
        return
    if signed[0].standing == told.standing or kept.standing(request) == Standing.PENDING:
        return
    details = {"request": request.id, "standing": str(signed[0].standing)}
    try:
        coordinator.decide(request.id, *signed)
    except CoordinatorRefused as error:
        if error.code == TOO_OFTEN:
            raise
        log.warning("decision refused by the coordinator", extra={"details": {**details, "code": error.code}})
    else:
        log.info("decision delivered", extra={"details": details})


def main() -> None:
    """Watch until ended; the first argument is the site.toml."""
    toml, pause = Path(sys.argv[1]), PAUSE
    logs.log_to(read_site_config(toml).state / "node" / "watcher.jsonl", os.environ.get(logs.LEVEL, "INFO"))
    while True:
        began = time.monotonic()
        try:
            with connected(toml.parent, read_site_config(toml).coordinator) as coordinator:
                watch(toml, coordinator)
        except CoordinatorSilent:
            log.info("the coordinator's service does not answer", extra={"details": {"again": pause}})
        except ExciseError as error:  # its text may name files of the site: the log may hold that, at the debug level
            log.warning("the coordinator's service: %s", type(error).__name__)
            log.debug("the coordinator's service", exc_info=error)
        pause = PAUSE if time.monotonic() - began > LONGEST else min(2 * pause, LONGEST)
        time.sleep(pause)


if __name__ == "__main__":
    main()
