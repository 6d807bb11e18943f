"""The built wheel, away from the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import excise

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("client", "common", "server", "simulations")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (path,) = folder.glob("excise-*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def files(folder: Path) -> set[Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder) for path in found}


def run_away_from_the_checkout(code: str, folder: Path) -> list[str]:
    """Run `code`, which can import from `folder` and the standard library alone; return the lines that it prints."""
    # -I -S: no PYTHONPATH, no current folder, and no site-packages, whose editable install would lead back to the checkout
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


def test_it_holds_one_name(wheel: Path) -> None:
    names = {path.name for path in wheel.iterdir()}
    assert names == {"excise", f"excise-{excise.__version__}.dist-info"}


def test_it_holds_every_file(wheel: Path) -> None:
    """Modules, and what they read: templates, scenarios."""
    expected = files(ROOT / "excise") | {Path(package) / path for package in PACKAGES for path in files(ROOT / package)}
    assert Path("common/errors.py") in expected
    assert files(wheel / "excise") == expected


def test_it_imports_away_from_the_checkout(wheel: Path) -> None:
    code = "import excise.common.errors; print(excise.common.errors.__file__, *excise.__path__, sep='\\n')"
    assert run_away_from_the_checkout(code, wheel) == [str(wheel / "excise/common/errors.py"), str(wheel / "excise")]


def test_its_command_is_ours(wheel: Path) -> None:
    entry_points = (wheel / f"excise-{excise.__version__}.dist-info" / "entry_points.txt").read_text()
    assert "excise = excise.cli:main" in entry_points


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == excise.__version__


def test_it_does_not_adopt_its_neighbours(wheel: Path, tmp_path: Path) -> None:
    """Site-packages may hold a `common` of someone else."""
    shutil.copytree(wheel / "excise", tmp_path / "excise")
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").touch()
    assert run_away_from_the_checkout("import excise; print(*excise.__path__)", tmp_path) == [str(tmp_path / "excise")]
