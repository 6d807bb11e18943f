"""Images as points in two dimensions: what sites and coordinator agree on (docs/adr/0021).

A site tells its images' places as cells of a square grid, `CELLS` to a standard deviation of all sites' images and no farther
out than `FARTHEST`: however the coordinator chooses axes and unit, a coordinate is one of 511 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

GROUPS = ("forget", "retain", "reference")
"""Sets of images that are shown, by the number that stands for them in messages."""
DIMS = 64
"""Most dimensions that features are brought to at the sites: more would travel as the square of them, and say little more of
the two main axes."""
IMAGES_PER_DIM = 2
"""Fewest images to a dimension of which moments are told. A covariance of d dimensions is that of any d images rotated alike;
of 2·d it has a quarter as many numbers as those images' features."""
CELLS = 32
"""Cells to a standard deviation. On a picture 600 pixels wide, 8 deviations across, a cell is 2.3 pixels: half a marker."""
FARTHEST = 255
"""Outermost cell, eight standard deviations from the mean; what lies beyond is drawn at the edge."""
POINTS, MOST = 500, 2000
"""Points of one group at one site: how many are asked for unless told, and the most that leave whatever is asked."""
UNTOLD = -1
"""In place of a class, where an image has any number of labels."""
FAULTS = ("shapes", "points", "labels", "range")
"""Codes of what can be wrong with a reply; a site is told of its own."""

_LARGEST = 1e15  # of a mean, and the square of it of a variance: sums over sites stay finite


def triangle(dims: int) -> int:
    """Numbers of a symmetric matrix of so many rows that have to travel."""
    return dims * (dims + 1) // 2


def moments_fault(images: int, mean: Sequence[float], covariance: Sequence[float]) -> str:
    """What is wrong with a site's moments, one of `FAULTS`; "" when nothing is. No images, no numbers: it tells nothing.

    Parameters
    ----------
    covariance : upper triangle, row by row
    """
    dims = len(mean)
    if dims > DIMS or len(covariance) != triangle(dims) or (images > 0) != (dims > 0):
        return "shapes"
    diagonal = [covariance[i * dims - i * (i - 1) // 2] for i in range(dims)]
    if images < 0 or not all(variance >= 0 for variance in diagonal):
        return "range"
    plausible = all(abs(value) <= _LARGEST for value in mean) and all(abs(value) <= _LARGEST**2 for value in covariance)
    return "" if plausible else "range"  # NaN is not


def points_fault(
    before: Sequence[float],
    after: Sequence[float],
    groups: Sequence[float],
    labels: Sequence[float],
    classes: int,
    most: int,
) -> str:
    """What is wrong with a site's points, one of `FAULTS`; "" when nothing is.

    Parameters
    ----------
    before, after : cells, x and y of each point in turn
    groups, labels : of each point, as whole numbers
    classes : how many there are; 0 where images have any number of labels, and no class is told
    most : points of one group that were asked for
    """
    if not len(before) == len(after) == 2 * len(groups) == 2 * len(labels):
        return "shapes"
    if any(group not in range(len(GROUPS)) for group in groups):
        return "labels"
    if any(label not in (range(classes) if classes else (UNTOLD,)) for label in labels):
        return "labels"
    if any(list(groups).count(group) > min(most, MOST) for group in set(groups)):
        return "points"
    on_grid = all(abs(cell) <= FARTHEST and cell == int(cell) for cell in (*before, *after))
    return "" if on_grid else "range"
