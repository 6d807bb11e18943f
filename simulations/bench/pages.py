"""What result pages share."""

from __future__ import annotations

import textwrap


def paragraph(text: str) -> list[str]:
    """Lines of at most 120 characters."""
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
