"""The examples in our docstrings, under their real module names.

pytest's own ``--doctest-modules`` would import ``common/errors.py`` as `common.errors`, a second copy beside
`excise.common.errors`, with error classes and registries of its own.
"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def modules_with_examples(root: Path) -> list[str]:
    """Names of the modules that hold an example; the others need no import."""
    paths = [
        path for package in ("client", "common", "server", "simulations") for path in sorted((root / package).rglob("*.py"))
    ]
    names = [
        ".".join(["excise", *path.relative_to(root).with_suffix("").parts]) for path in paths if ">>> " in path.read_text()
    ]
    return [name.removesuffix(".__init__") for name in names]


def test_examples_run() -> None:
    results = {name: doctest.testmod(importlib.import_module(name)) for name in modules_with_examples(ROOT)}
    assert {name: result for name, result in results.items() if result.failed} == {}


def test_a_module_with_an_example_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "plain.py").write_text('"""Nothing."""\n')
    (tmp_path / "common" / "__init__.py").write_text('"""\n>>> 1 + 1\n2\n"""\n')
    (tmp_path / "common" / "sums.py").write_text('"""\n>>> 1 + 1\n3\n"""\n')
    assert modules_with_examples(tmp_path) == ["excise.common", "excise.common.sums"]
