from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios import prepared, run

Json = dict[str, Any]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Json:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(*prepared(folder), folder / "run")
