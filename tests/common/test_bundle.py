"""The bundle: of this release, and nothing but names."""

from __future__ import annotations

import tomllib

from excise import __version__
from excise.common.bundle import FOLDER, bundle_digest


def test_the_bundle_names_this_release_and_holds_no_code() -> None:
    assert [path.name for path in FOLDER.iterdir()] == ["pyproject.toml"]
    told = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert told["project"]["version"] == __version__
    assert told["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "excise.server.app:app",
        "clientapp": "excise.client.app:app",
    }


def test_the_digest_is_always_the_same() -> None:
    assert bundle_digest() == bundle_digest()
    assert len(bundle_digest()) == 64
