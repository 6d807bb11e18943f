"""The process that runs a site's apps: Flower's SuperExec, with app processes that need not load anything.

Flower answers each message in a process of its own, which ends with its answer, and so do the memory and the GPU that it took.
Started anew it would load torch and this package each time, for seconds; here it is forked from one that has loaded them and
does nothing else.

    supervisor.py ── SuperExec ── loaded process ── app process of a message
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType, SimpleNamespace
from typing import IO, Any

from excise.common.supervisor import end_with_parent

APP = "flwr-clientapp"
FLOWER = ("flwr.supercore.cli.flower_superexec", "flwr.supernode.cli.flwr_clientapp")
"""What the SuperExec and app processes need."""
LOADED = "excise.client.app"
"""What app processes alone need. Like Flower it starts no thread of Python and takes no GPU, which no fork would survive."""


def main() -> None:
    """Run the SuperExec; its options are Flower's own. Returns in app processes, which have answered then."""
    for module in FLOWER:
        import_module(module)
    orders, order = os.pipe()
    loaded = os.fork()
    if loaded == 0:
        os.close(order)
        end_with_parent()
        import_module(LOADED)
        serve(os.fdopen(orders), run_app)
        return
    os.close(orders)

    def look(number: int, frame: FrameType | None) -> None:
        if os.waitpid(loaded, os.WNOHANG) != (0, 0):
            raise SystemExit("the process from which apps are forked has ended")  # the supervisor starts both anew

    signal.signal(signal.SIGCHLD, look)
    _superexec(os.fdopen(order, "w", buffering=1))


def serve(orders: IO[str], run: Callable[[Sequence[str]], None]) -> None:
    """Fork a process for each command of `orders`, a JSON list a line, until they end; `run` it there, and return."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries those that end
    for command in orders:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the app waits for processes of its own
            orders.close()
            run(json.loads(command))
            return


def run_app(command: Sequence[str]) -> None:
    """Be Flower's app process."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    sys.argv = [*command]
    flwr_clientapp()


def _superexec(order: IO[str]) -> None:
    from flwr.supercore.cli.flower_superexec import flower_superexec
    from flwr.supercore.superexec.executor import subprocess_executor

    def hand_over(command: Sequence[str]) -> None:
        if command[0] != APP:
            raise ValueError(f"a site runs {APP} alone, not {command[0]}")
        print(json.dumps(command), file=order)

    executor: Any = subprocess_executor  # what is replaced is no part of what Flower promises
    executor.subprocess = SimpleNamespace(Popen=hand_over)
    flower_superexec()


if __name__ == "__main__":
    main()
