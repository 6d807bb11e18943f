"""Keyed hashes: what a site keeps of images and patients without naming them. The key is its secret, `split.key`.

A file of them is worthless under another key and would silently match nothing, so each begins with a check of its key.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from excise.common.errors import DataError


def keyed(secret: str, value: str) -> str:
    """HMAC-SHA256, 64 hexadecimal digits."""
    return hmac.new(secret.encode(), value.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def check_of(secret: str) -> str:
    """What the files of a site begin with: the same for the same secret, and of no use to find it."""
    return keyed(secret, "check of split.key")


def check(told: str, secret: str, path: Path) -> None:
    """Refuse a file that was written under another secret.

    Raises
    ------
    DataError : it was; says what to do
    """
    if not hmac.compare_digest(told.encode(), check_of(secret).encode()):
        raise DataError(
            f"{path} was written under another split.key than site.toml has now, and would match nothing: put the former key "
            "back from your backup"
        )
