"""Names beside points of a picture, where they hide neither one another nor, if it can be helped, a point."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from excise.server.drawing import short

SIZE, MOST = 8, 24
"""Of letters, in points; and how many of them a name has at most."""
MARKER = 2
"""How far a marker reaches about its point, in points."""
PLACES = ((7, 4), (7, -11), (-7, 4), (-7, -11), (7, 15), (7, -22), (-7, 15), (-7, -22))
"""Where a name may begin, or end, beside its point: in points, the first that does best."""


def write_names(axes: Axes, at: Mapping[str, tuple[float, float]], names: Sequence[str], bold: Collection[str] = ()) -> None:
    """Write names; one that finds no place is left out, and so is one that would hide a point, unless it is bold.

    Parameters
    ----------
    axes : of a figure whose layout is done
    at : every point of the picture, by name
    names : those to be written, the first ones first
    """
    scale = axes.figure.dpi / 72
    points_N2 = axes.transData.transform(list(at.values()))
    taken: list[Bbox] = []
    for name in dict.fromkeys(names):
        x, y = axes.transData.transform(at[name])
        width, height = 0.58 * SIZE * len(short(name, MOST)) * scale, 1.1 * SIZE * scale
        best: tuple[int, tuple[int, int], Bbox] | None = None
        for right, up in PLACES:
            left = x + right * scale - (width if right < 0 else 0)
            box = Bbox.from_bounds(left, y + up * scale - 0.2 * height, width, height)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
            if not inside or any(box.overlaps(other) for other in taken):
                continue
            hidden = int(np.sum([box.padded(MARKER * scale).contains(*point) for point in points_N2]))
            if best is None or hidden < best[0]:
                best = hidden, (right, up), box
        if best is None or (best[0] and name not in bold):
            continue
        taken.append(best[2])
        axes.annotate(
            short(name, MOST),
            at[name],
            best[1],
            textcoords="offset points",
            fontsize=SIZE,
            weight="bold" if name in bold else "normal",
            ha="left" if best[1][0] > 0 else "right",
        )
