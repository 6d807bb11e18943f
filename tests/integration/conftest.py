from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import pytest
from matplotlib.figure import Figure

from excise.server import pictures
from tests.scenarios import prepared, run

Json = dict[str, Any]


def painted(name: str, label: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """A picture that is painted, and not turned into SVG: that takes most of the time of a small run."""
    paint(Figure(figsize=size))
    return f'<svg role="img" aria-label="{escape(label)}"></svg>'


@pytest.fixture(scope="module", autouse=True)
def _no_rendering() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", painted)
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Json:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(*prepared(folder), folder / "run")
