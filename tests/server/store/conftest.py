"""Every test of the store runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import URL, emptied, postgres, programs


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL database that may be emptied."""
    if URL in os.environ:
        yield os.environ[URL]
        return
    at = programs()
    if at is None:
        pytest.skip("no PostgreSQL here: make test installs it")
    with postgres(at) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'kept' / 'store.db'}"
    return emptied(request.getfixturevalue("server"))
