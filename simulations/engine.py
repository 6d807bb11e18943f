"""Running the real server and client apps for a plan, on Flower's simulation engine or inside this process."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

Backend = Literal["flower", "inprocess"]

# Flower reads these when it is imported: no telemetry, no look for updates, no installing of packages while a run starts.
os.environ.setdefault("FLWR_HOME", str(Path(tempfile.gettempdir()) / f"excise-flwr-{os.getuid()}"))
for _name in ("FLWR_DISABLE_UPDATE_CHECK", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"):
    os.environ[_name] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch  # noqa: E402 - after the environment
from flwr.app import Context  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid  # noqa: E402

from excise.client.accountant import Accountant  # noqa: E402
from excise.client.app import make_app as make_client_app  # noqa: E402
from excise.client.config import read_site_config  # noqa: E402
from excise.client.preparation import PREPARATIONS  # noqa: E402
from excise.server.app import make_app as make_server_app  # noqa: E402
from excise.server.coordinator import Coordinator  # noqa: E402
from excise.server.federation import Progress  # noqa: E402
from excise.server.plan import Plan  # noqa: E402
from excise.server.record import RunFolder  # noqa: E402
from excise.simulations.local_grid import LocalGrid  # noqa: E402


def run_plan(
    plan: Plan,
    sites: Sequence[Path],
    folder: RunFolder,
    backend: Backend,
    progress: Progress,
    grid: Callable[[ClientApp, int], Grid] | None = None,
) -> dict[str, Any]:
    """Carry out `plan` at simulated sites and return its results.

    Parameters
    ----------
    sites : the `site.toml` of each site
    backend : "flower" is Flower's engine on Ray; "inprocess" calls the same apps one after another
    grid : what carries the messages of "inprocess" in place of `LocalGrid`; it may look at them

    Raises
    ------
    ExciseError : whatever the coordinator raises
    """
    client = simulated_client(sites)
    if all(folder.load_phase(candidate.phase) is None for candidate in plan.tried):
        # What an earlier run of these sites prepared would make this one look cheaper than it is, and what left in it would be
        # counted in this one's ε.
        for site in sites:
            shutil.rmtree(read_site_config(site).state / PREPARATIONS, ignore_errors=True)
            Accountant(site.parent).path.unlink(missing_ok=True)
    with _ctrl_c() as stopped, one_thread():
        if backend == "inprocess":
            return Coordinator((grid or LocalGrid)(client, len(sites)), plan, folder, progress, stopped).run()
        return _run_on_flower(plan, client, len(sites), folder, progress, stopped)


def simulated_client(sites: Sequence[Path]) -> ClientApp:
    """The client app of all simulated sites: node i is the i-th of `sites`."""
    paths = [str(path) for path in sites]

    def locate(context: Context) -> Path:
        return Path(paths[int(context.node_config["partition-id"])])

    return make_client_app(locate)


def _run_on_flower(
    plan: Plan, client: ClientApp, nodes: int, folder: RunFolder, progress: Progress, stopped: Callable[[], bool]
) -> dict[str, Any]:
    from flwr.simulation import run_simulation  # imports Ray, which takes seconds

    results: dict[str, Any] = {}
    server = make_server_app(plan, folder, results, progress, stopped)
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 1 / nodes if torch.cuda.is_available() else 0.0}}
    with _quiet_flower():
        run_simulation(server, client, nodes, backend_config=resources)  # type: ignore[arg-type]
    return results


@contextlib.contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the coordinator to stop between two looks for replies; a second one is Python's own.

    Flower's engine waits for its server thread and would not notice a KeyboardInterrupt in the main thread.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread can receive signals
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread of arithmetic for each site: sites share the machine's cores, and sums do not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Flower and Ray report on the terminal, where our progress bars are; their errors still come."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
