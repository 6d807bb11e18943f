"""What worker processes import has to be light: each of them would hold torch in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_reading_headers_needs_neither_torch_nor_flower() -> None:
    code = "import sys, excise.client.dicom.index; print(sorted({'torch', 'flwr'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module",
    [
        "excise.client.deploy.watcher",
        "excise.server.api.serve",
        "excise.server.standing",
        "excise.server.dashboard.compare",
        "excise.server.dashboard.run_view",
    ],
)
def test_who_only_talks_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_a_site_waits_only_for_what_a_message_needs() -> None:
    """A deployed site starts a process for every message."""
    needless = "{'opacus', 'sklearn', 'scipy.stats', 'torchvision', 'monai'}"
    code = f"import sys, excise.cli, excise.client.app, excise.client.cli; print(sorted({needless} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
