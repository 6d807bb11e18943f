"""How every picture is drawn: as SVG text, to stand inside an HTML page or a file of its own.

The same numbers give the same bytes, on every run: fixed salt, no date, our own settings instead of the user's matplotlibrc.
Nothing is told by colour alone: a set of images has its colour, its marker and its place, a retrained model is dashed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe-Ito: told apart with every kind of colour vision, and in grey by their lightness.
RETAIN, FORGET, HELD_OUT, MEMBERSHIP, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#222222"
LINES = (RETAIN, FORGET, HELD_OUT, MEMBERSHIP, "#E69F00", "#56B4E9")
WORSE, BETTER = "#B2182B", "#2166AC"
SETS = {  # name of the set: colour, marker
    "retain": (RETAIN, "o"),
    "held-out": (HELD_OUT, "^"),
    "forget": (FORGET, "s"),  # last, so that it lies on top
}

_STYLE: Any = {  # Any: matplotlib types its keys as one literal of all settings
    "svg.hashsalt": "excise",
    "svg.fonttype": "path",  # looks alike where our font is not installed
    "text.parse_math": False,  # a site may have a $ in its name
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#666666",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "hatch.linewidth": 0.7,
}


def draw(name: str, label: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """Paint a figure of `size` inches and return it as one `<svg>` element that is told as `label` to who cannot see it."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a site's name in letters that it lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    """The `<svg>` element of a file, for a page that holds several: ids of its own, no metadata, no comments."""
    svg = svg[svg.index("<svg") :]
    # matplotlib's own <style> holds one rule for every element, of our page too; the root's attributes say the same
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="|(?<=url\(#)|(?<=href="#)', lambda found: f"{found[0]}{name}-", svg)
    head, _, body = svg.partition(">")
    head = re.sub(r' (width|height|version)="[^"]*"', "", head)
    body = re.sub(r"\n\s*\n", "\n", body)
    return f'{head} stroke-linejoin="round" role="img" aria-label="{escape(label)}">{body}'


def legend_below(axes: Axes, columns: int) -> None:
    """Legend under the axes, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, columnspacing=1.2, handlelength=2.2)


def plain(value: float, _: object = None) -> str:
    """Tick label without an exponent: three digits, of thousands all.

    >>> [plain(value) for value in (0.12345, 100, 1000, 12_000)]
    ['0.123', '100', '1,000', '12,000']
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def signed(value: float, _: object = None) -> str:
    """Tick label of a difference, with a true minus sign."""
    return f"{value:+.3g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def short(text: str, most: int = 28) -> str:
    """One line of at most `most` letters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
