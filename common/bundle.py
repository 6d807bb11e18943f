"""Flower's app bundle of this release: what the coordinator submits, and what a site allows by its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "flower_app"
"""What `flwr run` makes the bundle of: one file, which names the code that is installed at each site."""


def bundle() -> bytes:
    """The bundle; the same on every machine."""
    from flwr.cli.build import build_fab_from_disk  # seconds to import

    return build_fab_from_disk(FOLDER)


def bundle_digest() -> str:
    """SHA-256 of the bundle, 64 hexadecimal digits."""
    return hashlib.sha256(bundle()).hexdigest()
