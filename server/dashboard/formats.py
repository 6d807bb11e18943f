"""How numbers and times are written: three decimals, a true minus, a dash for what is missing (never 0), relative ages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup, escape

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
FEW = 3
"""Names that are told of many."""
_PATH = re.compile(
    r"""(?P<mark>['"])/(?:[^'"\n/]+/)*(?P<quoted>[^'"\n/]+)/?(?P=mark)"""  # as Python writes it; it may hold spaces
    r"""|(?:file://|(?<![\w./:~-]))/(?:[^\s'"/:;,()<>]+/)+(?P<plain>[^\s'"/:;,()<>]+)/?"""
)


def three(value: float | None) -> str:
    """A number with three decimals."""
    return DASH if value is None else f"{value:.3f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return DASH if value is None else f"{value:+.3f}".replace("-", MINUS)


def share(value: float | None) -> str:
    """A share as percent."""
    return DASH if value is None else f"{100 * value:.1f} %"


def short(digest: str | None) -> str:
    """The beginning of a digest."""
    return f"{digest[:12]}…" if digest else DASH


def age(time: str | None) -> Markup:
    """A time as the page tells it: how long ago, with the time itself beside it."""
    if not time:
        return escape(DASH)
    shown = time[:19].replace("T", " ")
    at = escape(time)
    return Markup(f'<time datetime="{at}" data-age title="{at}">{escape(shown)}</time>')  # noqa: S704 - both are escaped


def few(names: Sequence[str]) -> str:
    """Some of many names; all of them stand on a page of their own."""
    if not names:
        return DASH
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more} more" if more > 0 else "")


def without_paths(text: str) -> str:
    """A text for a browser: of a path of this machine only its last part.

    >>> without_paths("cannot write /srv/runs/mr7/metrics.json: disk full")
    'cannot write metrics.json: disk full'
    >>> without_paths("no such file: '/srv/old runs/mr7'")
    "no such file: 'mr7'"
    """
    return _PATH.sub(lambda found: found["mark"] + found["quoted"] + found["mark"] if found["mark"] else found["plain"], text)


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return DASH
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


FILTERS: dict[str, Callable[..., Any]] = {
    "three": three,
    "signed": signed,
    "share": share,
    "short": short,
    "age": age,
    "few": few,
    "duration": duration,
}
