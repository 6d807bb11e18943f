"""The dashboard beside a simulation ends with it, however that ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.deployment import ROOT, eventually

BESIDE = "import sys, time; from pathlib import Path; from excise.simulations.live import dashboard\n"
BESIDE += "with dashboard(Path(sys.argv[1]), True): time.sleep(120)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_a_simulation_that_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BESIDE, str(tmp_path / "runs")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stderr is not None
            said = iter(process.stderr.readline, "")
            address = next(found[1] for line in said if (found := re.search(r"Open (\S+)", line)))
            assert httpx.get(address).status_code == 303
            process.send_signal(number)
            process.wait(30)
            eventually(lambda: _ended(address), 30, "the dashboard lives on")
        finally:
            process.kill()


def _ended(address: str) -> bool:
    try:
        httpx.get(address)
    except httpx.HTTPError:
        return True
    return False
