"""The one form of a document that is signed: JSON with sorted keys and without spaces (in the manner of RFC 8785)."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any


def canonical(document: Any) -> str:
    """The document's text: equal documents give equal text, whoever writes it.

    Raises
    ------
    ValueError : it holds a number that is not finite, which JSON has no name for
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """`value` with null in place of every number that is not finite: JSON has no name for those."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest_of(text: str) -> str:
    """SHA-256 of a text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
