"""Who may import whom, read off the source; the table is the one in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MAY_IMPORT = {  # folder: our packages that its modules may import
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": {"simulations", "client", "common", "server"},
}
OURS = {*MAY_IMPORT, "cli"}

PURE = ("client/unlearning", "server/composition")  # mathematics: no Flower, no files, no clock
IMPURE = {"flwr", "ray", "os", "io", "pathlib", "shutil", "tempfile", "time", "datetime"}


def imported(source: str) -> Iterator[str]:
    """Dotted names of all that `source` imports, wherever in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def violations(folder: str, source: str) -> list[str]:
    """What `source`, a module in `folder` (relative to the root), imports and may not."""
    package = folder.split("/")[0]
    pure = any(folder == place or folder.startswith(f"{place}/") for place in PURE)
    found = []
    for name in imported(source):
        first, _, rest = name.partition(".")
        second = rest.split(".")[0]
        wrong_way = first == "excise" and second in OURS - MAY_IMPORT[package]
        if wrong_way or first in OURS or name.startswith(".") or (pure and first in IMPURE):
            found.append(name)
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    modules = list((ROOT / package).rglob("*.py"))
    assert modules
    found = {}
    for module in modules:
        if wrong := violations(module.parent.relative_to(ROOT).as_posix(), module.read_text()):
            found[module.relative_to(ROOT).as_posix()] = wrong
    assert found == {}


@pytest.mark.parametrize("folder", PURE)
def test_the_pure_folders_exist(folder: str) -> None:
    assert list((ROOT / folder).glob("*.py"))


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("common", "from excise.client.site import Site"),
        ("common", "import excise.server"),
        ("common", "from excise import simulations"),
        ("client", "from excise.server import rounds"),
        ("client/dicom", "import excise.simulations.run as run"),
        ("server", "from excise import common, client"),
        ("server", "from excise.simulations.hospitals import make"),
        ("simulations", "from excise.cli import main"),
        ("client", "import common"),
        ("client", "from common.errors import DataError"),
        ("client", "from . import site"),
        ("client", "from ..common import errors"),
        ("client/unlearning", "from flwr.app import Message"),
        ("client/unlearning", "from pathlib import Path"),
        ("client/unlearning", "import os.path"),
        ("server/composition", "import time"),
        ("server/composition/robust", "import time"),
        ("server", "def late():\n    if True:\n        from excise.client import site"),
    ],
)
def test_a_planted_violation_is_found(folder: str, line: str) -> None:
    assert len(violations(folder, line)) == 1


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("common", "from excise.common.errors import DataError"),
        ("common", "from excise import __version__"),
        ("client", "from pathlib import Path"),
        ("client/unlearning", "import torch"),
        ("client/unlearning", "from excise.common.settings import SearchSettings"),
        ("simulations", "from excise.client import site\nfrom excise.server import rounds"),
        ("client", "from commonmark import commonmark"),
    ],
)
def test_what_is_allowed_passes(folder: str, line: str) -> None:
    assert violations(folder, line) == []


@pytest.mark.parametrize(
    "line", ["import common", "from client import site", "import server.app", "from simulations.run import run"]
)
def test_ruff_refuses_a_bare_import(line: str) -> None:
    arguments = ["--no-cache", "--select", "TID251", "--stdin-filename", "client/planted.py", "-"]
    command = [sys.executable, "-m", "ruff", "check", *arguments]
    run = subprocess.run(command, cwd=ROOT, input=f"{line}\n", capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "TID251" in run.stdout
