from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.simulations.run import as_toml
from tests.scenarios import prepared, quiet, run, scenario

WAYS = [
    {"name": "gentle", "unlearning": {"keep": "last", "local": {"rounds": 1, "steps": 2}}},
    {"name": "nearest", "unlearning": {"keep": "last", "target": {"kind": "nearest"}, "local": {"rounds": 2, "steps": 2}}},
]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two finished runs: `one` tries one way, `two` tries two."""
    folder = tmp_path_factory.mktemp("made")
    for name, changes in (("one", {}), ("two", {"candidates": WAYS, "seed": 1})):
        plan, sites = prepared(folder, **changes)
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "config.toml").write_text(as_toml(scenario(folder, **changes)))
        run(plan, sites, folder / "runs" / name, progress=quiet)
    return folder / "runs"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a run into the test's own folder of runs; returns the copy."""

    def copied(name: str = "one", to: str = "") -> Path:
        shutil.copytree(made / name, tmp_path / "runs" / (to or name))
        return tmp_path / "runs" / (to or name)

    return copied
