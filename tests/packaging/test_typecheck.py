"""mypy sees through the link tree: a planted error is found, across packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def typecheck() -> ModuleType:
    spec = importlib.util.spec_from_file_location("typecheck", ROOT / "scripts" / "typecheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in small: our excise/__init__.py, and a module in common that a module in client calls."""
    root = tmp_path / "checkout"
    for package in ("client", "common", "server", "simulations"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    (root / "excise").mkdir()
    (root / "excise" / "__init__.py").write_text((ROOT / "excise" / "__init__.py").read_text())
    (root / "common" / "sizes.py").write_text("def double(size: int) -> int:\n    return 2 * size\n")
    (root / "client" / "site.py").write_text("from excise.common.sizes import double\n\ndouble(2)\n")
    return root


def test_planted_errors_are_found(typecheck: ModuleType, checkout: Path, tmp_path: Path) -> None:
    def check() -> tuple[int, str]:
        typecheck.link_tree(checkout, tmp_path / "tree")
        return typecheck.check(tmp_path / "tree", ROOT / "pyproject.toml", tmp_path / "cache")

    assert check() == (0, "Success: no issues found in 7 source files\n")

    (checkout / "client" / "site.py").write_text('from excise.common.sizes import double\n\ndouble("2")\n')
    (checkout / "common" / "sizes.py").write_text('def double(size: int) -> int:\n    return "2" * size\n')
    code, report = check()
    assert code == 1
    assert 'client/site.py:3: error: Argument 1 to "double" has incompatible type "str"; expected "int"' in report
    assert "common/sizes.py:2: error: Incompatible return value type" in report
